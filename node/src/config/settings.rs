//! The table of all keys, and how values of each type are read and shown.
//!
//! A value comes as TOML with its place; a bare text stands for lists, too
//! (`"a,b"`), so that the environment and flags need no brackets.

use std::{net::SocketAddr, ops::Range, path::PathBuf, time::Duration};

use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};
use suanli_executor::{
    AdapterSelection,
    quantity::{ByteSize, Span},
};
use suanli_protocol::{
    expression::Scope, ids::AccountId, limits::NAME_BYTES_MAX, offer::Name, registry::SandboxLevel,
    units::Amount,
};
use toml::{
    Spanned, Value,
    de::{DeValue, ValueDeserializer},
};

use super::{
    Accept, BudgetEntry, Config, DeviceSelection, Hours, IdleAfter, KnownAccount, LogFormat,
    PriceEntry, UtcOffset, Yield,
};
use crate::{
    document::with_suggestion, expression, models::entry::ModelEntry, pricing::PricingEntry,
};

/// A key.
#[derive(Debug)]
pub struct Setting {
    /// With dots: `provide.slots`.
    pub key: &'static str,
    /// Sets it.
    pub(super) set: fn(&mut Config, Spanned<DeValue<'_>>) -> Result<(), Wrong>,
    /// Its value; none where nothing is set and nothing stands for that.
    pub(super) show: fn(&Config) -> Option<Value>,
}

impl Setting {
    /// Keys of `[provide]` count only where there is one.
    pub(super) fn is_in_force(&self, config: &Config) -> bool {
        config.provide.is_some() || !self.key.starts_with("provide.")
    }
}

/// What is wrong with a value.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Where, if in a file.
    pub(super) at: Option<Range<usize>>,
    /// What is wrong and what is allowed.
    pub(super) message: String,
}

/// Tables that hold keys.
pub const SECTIONS: [&str; 2] = ["provide", "timing"];

/// The setting of a key.
pub fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

macro_rules! top {
    ($($field:ident),* $(,)?) => { [$(Setting {
        key: stringify!($field),
        set: |config, value| { config.$field = Read::read(value)?; Ok(()) },
        show: |config| config.$field.show(),
    }),*] };
}

macro_rules! provide {
    (@key $field:ident) => { concat!("provide.", stringify!($field)) };
    (@key $field:ident $name:literal) => { concat!("provide.", $name) };
    ($($field:ident $(as $name:literal)?),* $(,)?) => { [$(Setting {
        key: provide!(@key $field $($name)?),
        set: |config, value| {
            config.provide.get_or_insert_default().$field = Read::read(value)?;
            Ok(())
        },
        show: |config| config.provide.as_ref().and_then(|provide| provide.$field.show()),
    }),*] };
}

macro_rules! timing {
    ($($field:ident),* $(,)?) => { [$(Setting {
        key: concat!("timing.", stringify!($field)),
        set: |config, value| { config.timing.$field = Read::read(value)?; Ok(()) },
        show: |config| config.timing.$field.show(),
    }),*] };
}

static TOP: [Setting; 19] = top![
    network,
    unit,
    data_dir,
    region,
    listen,
    bootstrap,
    lan,
    api,
    api_allow_remote,
    api_token_file,
    log,
    log_format,
    worker,
    max_price,
    audit_percent,
    traffic_price,
    budget,
    store_quota,
    history,
];

static PROVIDE: [Setting; 29] = provide![
    slots,
    workers,
    device,
    firm,
    strangers,
    sandbox_min,
    accept,
    stranger_credit,
    strangers_budget,
    known,
    blocked,
    run_max,
    storage,
    discount_percent_max,
    challenges_per_hour,
    references_per_hour,
    queue,
    power_price,
    watts,
    carbon,
    pricing,
    memory,
    memory_reserve,
    idle_after,
    hours,
    utc_offset,
    yields as "yield",
    price,
    model,
];

static TIMING: [Setting; 19] = timing![
    offer_ttl,
    hold,
    hold_grace,
    quote_wait,
    quote_grace,
    resend,
    heartbeat,
    lost_after,
    transfer_max,
    collect_max,
    executor_grace,
    interrupted_max,
    retry,
    patience,
    exclude,
    settle_retry,
    pull,
    fetch_tries,
    queue_max,
];

/// All keys, in the order in which people see them.
pub static SETTINGS: All = All;

/// See [`SETTINGS`].
#[derive(Debug, Clone, Copy)]
pub struct All;

impl All {
    /// One after the other.
    pub fn iter(self) -> impl Iterator<Item = &'static Setting> + Clone {
        TOP.iter().chain(&PROVIDE).chain(&TIMING)
    }
}

/// A type that a key can have.
trait Read: Sized {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong>;
    fn show(&self) -> Option<Value>;
}

/// Types that are written as a text of their own, or as something that serde reads.
macro_rules! read_by_serde {
    ($($type:ty),*) => { $(impl Read for $type {
        fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
            deserialize(value)
        }
        fn show(&self) -> Option<Value> {
            Value::try_from(self).ok()
        }
    })* };
}

read_by_serde!(
    bool,
    u8,
    u32,
    ByteSize,
    BudgetEntry,
    KnownAccount,
    PriceEntry,
    PricingEntry,
    ModelEntry,
    AccountId
);

impl Read for String {
    /// Names travel, and are shown on other people's terminals.
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        let (at, text) = text(value)?;
        match Name::new(text.as_str()) {
            Ok(_) if !text.is_empty() => Ok(text),
            Ok(_) | Err(_) => Err(Wrong {
                at: Some(at),
                message: format!("1 to {NAME_BYTES_MAX} bytes of visible text are allowed"),
            }),
        }
    }
    fn show(&self) -> Option<Value> {
        Some(Value::String(self.clone()))
    }
}

impl Read for PathBuf {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        let (at, text) = text(value)?;
        match text.is_empty() {
            false => Ok(Self::from(text)),
            true => Err(Wrong {
                at: Some(at),
                message: "a path is needed".into(),
            }),
        }
    }
    fn show(&self) -> Option<Value> {
        Some(Value::String(self.display().to_string()))
    }
}

impl Read for Duration {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        parse(value, str::parse::<Span>).map(|span| span.0)
    }
    fn show(&self) -> Option<Value> {
        Some(Value::String(Span(*self).to_string()))
    }
}

impl Read for Amount {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        let at = value.span();
        if let DeValue::Integer(number) = value.get_ref() {
            return parse(
                Spanned::new(at, DeValue::String(number.to_string().into())),
                str::parse,
            );
        }
        parse(value, str::parse)
    }
    fn show(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

impl Read for Multiaddr {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        parse(value, |text| {
            text.parse::<Self>().map_err(|error| {
                format!(
                    "`{}` is no multiaddress ({error}); write one like /ip4/192.0.2.1/tcp/7421",
                    text.escape_debug()
                )
            })
        })
    }
    fn show(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

impl Read for SocketAddr {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        parse(value, |text| {
            text.parse::<Self>().map_err(|_| {
                format!(
                    "`{}` is no address with a port; write one like 127.0.0.1:7420, port 0 for any free one",
                    text.escape_debug()
                )
            })
        })
    }
    fn show(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

impl Read for LogFormat {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        parse(value, |text| match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("\"text\" or \"json\" is allowed"),
        })
    }
    fn show(&self) -> Option<Value> {
        let text = match self {
            Self::Text => "text",
            Self::Json => "json",
        };
        Some(Value::String(text.into()))
    }
}

/// A list, or one text: a name, or numbers with commas (there are commas in names).
impl Read for DeviceSelection {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        let at = value.span();
        match value.into_inner() {
            DeValue::Array(entries) if entries.is_empty() => Err(Wrong {
                at: Some(at),
                message: "an empty list: \"none\" sells wasm only".to_owned(),
            }),
            DeValue::Array(entries) => {
                let each = entries
                    .into_iter()
                    .map(|one| parse(one, str::parse::<AdapterSelection>));
                each.collect::<Result<_, _>>().map(Self)
            }
            other => parse(Spanned::new(at, other), |text| {
                let parts: Vec<&str> = text.split(',').map(str::trim).collect();
                let all_numbers = parts.iter().all(|part| part.starts_with('#'));
                let parts = if all_numbers { parts } else { vec![text] };
                parts
                    .into_iter()
                    .map(|part| part.parse())
                    .collect::<Result<_, _>>()
                    .map(Self)
            }),
        }
    }
    fn show(&self) -> Option<Value> {
        let mut texts = self.0.iter().map(|one| Value::String(one.to_string()));
        match self.0.len() {
            1 => texts.next(),
            _ => Some(Value::Array(texts.collect())),
        }
    }
}

impl Read for IdleAfter {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        match value.get_ref().as_str() {
            Some("never") => Ok(Self(None)),
            Some(_) | None => Duration::read(value).map(|after| Self(Some(after))),
        }
    }
    fn show(&self) -> Option<Value> {
        match self.0 {
            Some(after) => after.show(),
            None => Some(Value::String("never".into())),
        }
    }
}

/// A list, or one text with semicolons: there are commas between days.
impl Read for Hours {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        let at = value.span();
        match value.into_inner() {
            DeValue::Array(entries) => entries.into_iter().map(Self::read).collect(),
            other => parse(Spanned::new(at, other), str::parse),
        }
    }
    fn show(&self) -> Option<Value> {
        let entries = self.entries().map(|entry| Value::String(entry.to_owned()));
        Some(Value::Array(entries.collect()))
    }
}

impl Read for Yield {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        parse(value, |text| match text {
            "pause" => Ok(Self::Pause),
            "off" => Ok(Self::Off),
            _ => Err("\"pause\" or \"off\" is allowed"),
        })
    }
    fn show(&self) -> Option<Value> {
        let text = match self {
            Self::Pause => "pause",
            Self::Off => "off",
        };
        Some(Value::String(text.into()))
    }
}

impl Read for SandboxLevel {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        parse(value, |text| {
            let allowed = "\"process\", \"confined\" or \"capped\" is allowed";
            Self::named(text).ok_or(allowed)
        })
    }
    fn show(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

impl Read for Accept {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        parse(value, |text| match text {
            "" => Ok(Self(None)),
            text => expression::condition(text, Scope::Job).map(|read| Self(Some(read))),
        })
    }
    fn show(&self) -> Option<Value> {
        let shown = self.0.as_ref().map(ToString::to_string);
        Some(Value::String(shown.unwrap_or_default()))
    }
}

impl Read for UtcOffset {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        parse(value, str::parse)
    }
    fn show(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

/// `"auto"` is nothing set.
impl<T: Read> Read for Option<T> {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        match value.get_ref().as_str() {
            Some("auto") => Ok(None),
            Some(_) | None => T::read(value).map(Some),
        }
    }
    fn show(&self) -> Option<Value> {
        match self {
            Some(value) => value.show(),
            None => Some(Value::String("auto".into())),
        }
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        let at = value.span();
        match value.into_inner() {
            DeValue::Array(items) => items.into_iter().map(T::read).collect(),
            DeValue::String(text) => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| T::read(Spanned::new(at.clone(), DeValue::String(item.into()))))
                .collect(),
            other => Err(Wrong {
                at: Some(at),
                message: format!("a list is needed, found {}", other.type_str()),
            }),
        }
    }
    fn show(&self) -> Option<Value> {
        self.iter()
            .map(Read::show)
            .collect::<Option<_>>()
            .map(Value::Array)
    }
}

fn deserialize<T: for<'de> Deserialize<'de> + Serialize>(
    value: Spanned<DeValue<'_>>,
) -> Result<T, Wrong> {
    let at = value.span();
    T::deserialize(ValueDeserializer::from(value)).map_err(|error| Wrong {
        at: error.span().or(Some(at)),
        message: with_suggestion(error.message()),
    })
}

fn text(value: Spanned<DeValue<'_>>) -> Result<(Range<usize>, String), Wrong> {
    let at = value.span();
    match value.into_inner() {
        DeValue::String(text) => Ok((at, text.into_owned())),
        other => Err(Wrong {
            at: Some(at),
            message: format!("a text in quotes is needed, found {}", other.type_str()),
        }),
    }
}

fn parse<T, E: ToString>(
    value: Spanned<DeValue<'_>>,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, Wrong> {
    let (at, text) = text(value)?;
    parse(&text).map_err(|error| Wrong {
        at: Some(at),
        message: error.to_string(),
    })
}
