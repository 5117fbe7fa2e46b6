//! What a terminal shows: tables, ages, and text that can't drive it.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use suanli_executor::quantity::Span;

use crate::wall::wall_ms;

/// Rows under a heading, each column as wide as its widest cell.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// Columns by name; those that begin with `>` are aligned to the right.
    pub(super) fn new(columns: &[&str]) -> Self {
        let names = columns.iter().map(|name| name.trim_start_matches('>'));
        Self {
            rows: vec![names.map(str::to_uppercase).collect()],
            right: columns.iter().map(|name| name.starts_with('>')).collect(),
        }
    }

    /// Adds a row. Cells may come from others: what is not visible is escaped.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows
            .push(cells.iter().map(|cell| visible(cell)).collect());
    }

    /// As text, with `indent` spaces before each row.
    pub(super) fn render(&self, indent: usize) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths = (0..self.right.len()).map(width).collect::<Vec<_>>();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                // Writing to a string does not fail.
                let _ = if *right {
                    write!(line, "{cell:>width$}  ")
                } else {
                    write!(line, "{cell:<width$}  ")
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names and values below each other.
pub(super) fn list(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = rows
        .iter()
        .map(|(name, value)| format!("{name:<width$}  {}\n", visible(value)));
    lines.collect()
}

/// A line for people, on standard output. Whoever closed it wants no more.
pub(super) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A line beside the answer, on standard error.
pub(super) fn print_aside(text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Whether a person can answer a question here.
pub(super) fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Whether a line can be overwritten.
pub(super) fn has_live_line() -> bool {
    std::io::stderr().is_terminal()
}

/// Text in which nothing moves a cursor, changes a colour or turns the
/// direction; line breaks are escaped, too.
pub(super) fn visible(text: &str) -> String {
    let escape = |c: char| c.is_control() || is_invisible(c);
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if escape(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// As [`visible`], with line breaks kept: for messages of several lines.
pub(super) fn visible_lines(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| visible(&line.replace('\t', "    ")));
    lines.collect::<Vec<_>>().join("\n")
}

fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{061C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
        | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}'
        | '\u{E0000}'..='\u{E007F}')
}

/// How long ago a time was, roughly: `3m ago`.
pub(super) fn age(at_ms: u64) -> String {
    let since = wall_ms().saturating_sub(at_ms);
    match since {
        0..1000 => "now".to_owned(),
        _ => format!("{} ago", rough(since / 1000 * 1000)),
    }
}

/// How long until a time, roughly: `in 3m`.
pub(super) fn until(at_ms: u64) -> String {
    match at_ms.saturating_sub(wall_ms()) {
        0 => "past".to_owned(),
        left => format!("in {}", rough(left)),
    }
}

/// A time span, in its two largest units or with two places.
pub(super) fn rough(millis: u64) -> String {
    let step = match millis {
        1000..10_000 => {
            let text = format!("{}.{:02}", millis / 1000, millis % 1000 / 10);
            return text.trim_end_matches('0').trim_end_matches('.').to_owned() + "s";
        }
        0..1000 => 1,
        10_000..3_600_000 => 1_000,
        3_600_000..86_400_000 => 60_000,
        _ => 3_600_000,
    };
    Span(Duration::from_millis(millis / step * step)).to_string()
}

/// Operations per second, with a prefix.
pub(super) fn speed(per_second: u64) -> String {
    const STEPS: [(u64, &str); 4] = [
        (1_000_000_000_000, "TFLOP/s"),
        (1_000_000_000, "GFLOP/s"),
        (1_000_000, "MFLOP/s"),
        (1, "FLOP/s"),
    ];
    let step = STEPS.iter().find(|(step, _)| per_second >= *step);
    match step {
        Some((step, name)) => {
            let tenths = u128::from(per_second) * 10 / u128::from(*step);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => "not measured".to_owned(),
    }
}

/// Bytes in the largest unit that keeps two digits before the point.
pub(super) fn bytes(count: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| count >= 1 << shift) {
        Some((unit, shift)) => {
            let tenths = u128::from(count) * 10 / (1 << shift);
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{count} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["region", ">price"]);
        table.row(["CN-NX".into(), "0.40".into()]);
        table.row(["somewhere".into(), "12.00".into()]);
        assert_eq!(
            table.render(2),
            "  REGION     PRICE\n  CN-NX       0.40\n  somewhere  12.00\n"
        );
    }

    #[test]
    fn text_of_others_cannot_drive_a_terminal() {
        assert_eq!(visible("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(visible("x\u{202e}y"), "x\\u{202e}y");
        assert_eq!(visible("宁夏 é"), "宁夏 é");
        assert_eq!(visible_lines("a\n\tb\u{7}"), "a\n    b\\u{7}");
    }

    #[test]
    fn quantities_are_short() {
        assert_eq!(rough(1_234), "1.23s");
        assert_eq!(rough(61_500), "1m1s");
        assert_eq!(rough(90_061_000), "1d1h");
        assert_eq!(speed(5_630_000_000), "5.6 GFLOP/s");
        assert_eq!(speed(0), "not measured");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(12), "12 B");
    }
}
