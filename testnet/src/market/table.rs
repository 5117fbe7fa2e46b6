//! A load's tables, as Markdown.

use std::io::Write;

use super::{Day, figures::Figures};

/// Prints what the days of one load came to.
pub(super) fn print(
    out: &mut dyn Write,
    (seed, load): (u64, f64),
    days: &[Day],
    bounds: &[Option<f64>],
) -> anyhow::Result<()> {
    let jobs = days.first().map_or(0, |day| day.outcome.trades.len());
    writeln!(out, "Load {load}, seed {seed}: {jobs} jobs.\n")?;
    writeln!(
        out,
        "| choice | done | declined | late | cost | at least | above it | per 10¹⁸ operations | \
         east → west | CO₂, kg | wait p50 | p95 | longest | of its time | worst client: done | its p95 wait |"
    )?;
    writeln!(out, "|---|{}", "---:|".repeat(15))?;
    for (day, bound) in days.iter().zip(bounds) {
        writeln!(out, "{}", row(day.choice, &day.figures, *bound))?;
    }
    if days.iter().any(|day| day.figures.traffic > 0.0) {
        let sent = days
            .iter()
            .map(|day| format!("{} {:.0}", day.choice, day.figures.traffic));
        let sent = sent.collect::<Vec<_>>().join(", ");
        writeln!(
            out,
            "\nBeside that, for inputs sent to other regions: {sent}."
        )?;
    }
    writeln!(out, "\nSlots taken in the day:\n")?;
    let regions: Vec<&str> = days
        .first()
        .map(|day| day.figures.used.keys().map(String::as_str).collect())
        .unwrap_or_default();
    writeln!(out, "| choice | east | west | {} |", regions.join(" | "))?;
    writeln!(out, "|---|{}", "---:|".repeat(regions.len() + 2))?;
    for day in days {
        let of = &day.figures;
        let sides = [of.used_east, of.used_west].into_iter();
        let used: Vec<String> = sides
            .chain(of.used.values().copied())
            .map(percent)
            .collect();
        writeln!(out, "| {} | {} |", day.choice, used.join(" | "))?;
    }
    writeln!(out)?;
    Ok(())
}

fn row(choice: &str, of: &Figures, bound: Option<f64>) -> String {
    let (least, above) = bound.map_or_else(Default::default, |bound| {
        let above = (of.cost / bound - 1.0) * 100.0;
        (format!("{bound:.0}"), format!("{above:.1} %"))
    });
    format!(
        "| {choice} | {} | {} | {} | {:.0} | {least} | {above} | {:.0} | {} | {:.0} | {} | {} | {} | {} | {} | {} |",
        of.done,
        of.declined,
        of.late,
        of.cost,
        of.cost_per_work,
        percent(of.moved),
        of.carbon_kg,
        time(of.wait_p50),
        time(of.wait_p95),
        time(of.wait_max),
        percent(of.wait_of_time),
        percent(of.worst_done),
        time(of.worst_wait_p95),
    )
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 60.0 => format!("{seconds:.1} s"),
        seconds if seconds < 3600.0 => format!("{:.1} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}
