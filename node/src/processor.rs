//! What this machine's processor is called and how much memory there is.
//!
//! Read from `/proc`; where that is missing, names are plain and memory is 0.

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
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self::from_texts(&read("/proc/cpuinfo"), &read("/proc/meminfo"))
    }

    fn from_texts(cpuinfo: &str, meminfo: &str) -> Self {
        let maker = match value(cpuinfo, "vendor_id") {
            Some("GenuineIntel") => "Intel",
            Some("AuthenticAMD") => "AMD",
            Some("HygonGenuine") => "Hygon",
            Some("Shanghai" | "CentaurHauls") => "Zhaoxin",
            Some(other) => other,
            None => "unknown",
        };
        let model = value(cpuinfo, "model name").unwrap_or(std::env::consts::ARCH);
        let kib = value(meminfo, "MemTotal").and_then(|total| total.split(' ').next());
        let kib = kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        Self {
            maker: maker.to_owned(),
            model: model.to_owned(),
            memory_bytes: kib.saturating_mul(1024),
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
    fn names_and_memory_are_found() {
        let cpuinfo = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC 7B13\n";
        let found = Processor::from_texts(cpuinfo, "MemTotal:       24735004 kB\n");
        assert_eq!((&*found.maker, &*found.model), ("AMD", "EPYC 7B13"));
        assert_eq!(found.memory_bytes, 24_735_004 * 1024);
        let nothing = Processor::from_texts("", "");
        assert_eq!((&*nothing.maker, nothing.memory_bytes), ("unknown", 0));
    }
}
