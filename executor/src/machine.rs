//! What there is of the machine.

/// Bytes of its main memory.
#[must_use]
pub fn memory_bytes() -> u64 {
    let machine = rustix::system::sysinfo();
    let unit = u64::from(machine.mem_unit).max(1);
    // As wide as a machine word.
    #[allow(clippy::useless_conversion, reason = "narrower on 32-bit machines")]
    u64::from(machine.totalram).saturating_mul(unit)
}
