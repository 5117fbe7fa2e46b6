//! What this machine's processor is called and how much memory there is.
//!
//! Names are read from `/proc`; where that is missing, they are plain.

use suanli_executor::machine;

/// The processor, as offers name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Processor {
    pub(crate) maker: String,
    pub(crate) model: String,
    /// Of the whole machine.
    pub(crate) memory_bytes: u64,
}

impl Processor {
    /// Asks the kernel.
    pub(crate) fn of_this_machine() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::from_text(&cpuinfo, machine::memory_bytes())
    }

    fn from_text(cpuinfo: &str, memory_bytes: u64) -> Self {
        let maker = match value(cpuinfo, "vendor_id") {
            Some("GenuineIntel") => "Intel",
            Some("AuthenticAMD") => "AMD",
            Some("HygonGenuine") => "Hygon",
            Some("Shanghai" | "CentaurHauls") => "Zhaoxin",
            Some(other) => other,
            None => "unknown",
        };
        let model = value(cpuinfo, "model name").unwrap_or(std::env::consts::ARCH);
        Self {
            maker: maker.to_owned(),
            model: model.to_owned(),
            memory_bytes,
        }
    }
}

/// The first value of a key, in lines of `key: value`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim_end() == key).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found() {
        let cpuinfo = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC 7B13\n";
        let found = Processor::from_text(cpuinfo, 7);
        assert_eq!((&*found.maker, &*found.model), ("AMD", "EPYC 7B13"));
        let nothing = Processor::from_text("", 7);
        assert_eq!((&*nothing.maker, nothing.memory_bytes), ("unknown", 7));
        assert!(Processor::of_this_machine().memory_bytes > 1 << 24);
    }
}
