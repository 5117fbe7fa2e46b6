//! What a GPU has taken of its memory, and of power, as its own tool says.
//!
//! Of NVIDIA's cards: `nvidia-smi`. Elsewhere the figures say that there are none.

use std::process::Command;

use super::figures::Figure;

/// Device memory in use, with a warm worker there and little else.
pub(super) fn memory() -> Figure {
    figure("device memory in use", "MiB", "memory.used")
}

/// Power, with a warm worker that rests.
pub(super) fn idle_watts() -> Figure {
    figure("device at rest, a worker open on it", "W", "power.draw")
}

fn figure(what: &str, unit: &'static str, query: &str) -> Figure {
    match ask(query) {
        Ok(samples) => Figure::of(what, unit, samples).note("of each card, by all that runs there"),
        Err(why) => Figure::skipped(what, unit, why),
    }
}

fn ask(query: &str) -> Result<Vec<f64>, &'static str> {
    let output = Command::new("nvidia-smi")
        .args([
            &format!("--query-gpu={query}"),
            "--format=csv,noheader,nounits",
        ])
        .output()
        .map_err(|_| "none here: no nvidia-smi")?;
    let said = String::from_utf8_lossy(&output.stdout);
    numbers(&said).ok_or("none here: nvidia-smi says no number")
}

/// A line for each card.
fn numbers(said: &str) -> Option<Vec<f64>> {
    let lines = said.lines().map(|line| line.trim().parse().ok());
    let numbers = lines.collect::<Option<Vec<_>>>()?;
    (!numbers.is_empty()).then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_that_says_no_number_is_none() {
        assert_eq!(numbers("14\n 71.30\n"), Some(vec![14.0, 71.3]));
        assert_eq!(numbers("[N/A]\n"), None);
        assert_eq!(numbers(""), None);
    }
}
