//! `suanli config`: what is set, and by what.

use clap::Subcommand;
use serde::Serialize;

use super::{context::Context, exit::Failure, screen::Table};
use crate::config::Origin;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Shows every key, its value, and where that came from
    ///
    /// The later wins: defaults, the file, the environment (SUANLI_REGION,
    /// SUANLI_PROVIDE_SLOTS, …), flags.
    Show,
}

#[derive(Debug, Serialize)]
struct Row {
    key: &'static str,
    value: Option<toml::Value>,
    origin: Origin,
}

impl Command {
    pub(super) fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Show => {
                let loaded = context.load(Vec::new())?;
                let rows = loaded
                    .rows()
                    .map(|(key, value, origin)| Row { key, value, origin });
                context.answer(&rows.collect::<Vec<_>>(), |rows| table(rows));
                Ok(())
            }
        }
    }
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new(&["key", "value", "from"]);
    for row in rows {
        let value = row.value.as_ref().map(ToString::to_string);
        table.row([
            row.key.to_owned(),
            value.unwrap_or_default(),
            row.origin.to_string(),
        ]);
    }
    table.render(0)
}
