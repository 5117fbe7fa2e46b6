//! The fields that expressions read, by number, name and type.

use std::fmt;

use bincode::{Decode, Encode};

use super::{Type, Unit};

/// A field, by its registered number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Field(pub u16);

/// What an expression is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// An offer, one of its devices, and what the client's node thinks of its provider.
    Offer,
    /// A job and its client, as the provider sees them.
    Job,
}

/// What is known of a field.
#[derive(Debug, Clone, Copy)]
pub struct FieldInfo {
    /// Which.
    pub field: Field,
    /// As people write it.
    pub name: &'static str,
    /// Where it can be read.
    pub scope: Scope,
    /// What it is.
    pub kind: Type,
    /// What it says, for people.
    pub says: &'static str,
}

macro_rules! fields {
    ($($konst:ident = $number:literal, $name:literal, $scope:ident, $kind:expr, $says:literal;)*) => {
        impl Field {
            $(#[doc = $says] pub const $konst: Self = Self($number);)*
        }

        /// All fields.
        pub const FIELDS: &[FieldInfo] = &[$(FieldInfo {
            field: Field::$konst,
            name: $name,
            scope: Scope::$scope,
            kind: $kind,
            says: $says,
        }),*];
    };
}

const TEXT: Type = Type::Text;
const BOOL: Type = Type::Bool;
const PLAIN: Type = Type::Number(Unit::Plain);
const BYTES: Type = Type::Number(Unit::Bytes);
const SECONDS: Type = Type::Number(Unit::Seconds);
const MONEY: Type = Type::Number(Unit::Money);
const SPEED: Type = Type::Number(Unit::Speed);
const RATE: Type = Type::Number(Unit::Rate);

fields! {
    REGION = 1, "region", Offer, TEXT, "Where the provider is.";
    PROVIDER = 2, "provider", Offer, TEXT, "The provider's account, in hexadecimal.";
    SANDBOX = 3, "sandbox", Offer, TEXT, "How well jobs are locked in: `process`, `confined`, `capped`.";
    FIRM = 4, "firm", Offer, BOOL, "Whether it can be taken in one round trip.";
    SLOTS = 5, "slots", Offer, PLAIN, "Executions at once.";
    SLOTS_FREE = 6, "slots_free", Offer, PLAIN, "Of these, free when the offer was made.";
    STORAGE = 7, "storage", Offer, BYTES, "What it keeps for one job.";
    RUN_MAX = 8, "run_max", Offer, SECONDS, "The longest execution that it runs.";
    BANDWIDTH = 9, "bandwidth", Offer, RATE, "To it, measured.";
    WATTS = 10, "energy.watts", Offer, PLAIN, "Its power under load.";
    CARBON = 11, "energy.carbon", Offer, PLAIN, "Grams of carbon dioxide per kilowatt-hour.";
    TRUST = 12, "trust", Offer, PLAIN, "How much of its speed this node believes, in percent.";

    DEVICE_KIND = 20, "device.kind", Offer, TEXT, "`gpu` or `cpu`.";
    DEVICE_MAKER = 21, "device.maker", Offer, TEXT, "Who made it.";
    DEVICE_MODEL = 22, "device.model", Offer, TEXT, "What it is called.";
    DEVICE_DRIVER = 23, "device.driver", Offer, TEXT, "The driver and its version.";
    DEVICE_MEMORY = 24, "device.memory", Offer, BYTES, "Memory that a job can use.";
    DEVICE_FP32 = 25, "device.fp32", Offer, SPEED, "32-bit arithmetic, measured.";
    DEVICE_FP16 = 26, "device.fp16", Offer, SPEED, "16-bit arithmetic, measured.";
    DEVICE_MATMUL = 27, "device.matmul", Offer, SPEED, "A matrix product, measured.";
    DEVICE_BANDWIDTH = 28, "device.bandwidth", Offer, RATE, "Its memory, measured.";
    DEVICE_FUEL = 29, "device.fuel", Offer, SPEED, "WebAssembly fuel, measured.";
    GPU_MAKER = 40, "gpu.maker", Offer, TEXT, "As `device.maker`, of a GPU only.";
    GPU_MODEL = 41, "gpu.model", Offer, TEXT, "As `device.model`, of a GPU only.";
    GPU_MEMORY = 42, "gpu.memory", Offer, BYTES, "As `device.memory`, of a GPU only.";
    GPU_FP32 = 43, "gpu.fp32", Offer, SPEED, "As `device.fp32`, of a GPU only.";

    PRICE_JOB = 60, "price.job", Offer, MONEY, "What each execution costs beside its time.";
    PRICE_GPU_HOUR = 61, "price.gpu_hour", Offer, MONEY, "What an hour on the device costs.";
    PRICE_FUEL = 62, "price.fuel", Offer, MONEY, "What a billion units of fuel cost.";
    EXPECTED_PRICE = 63, "expected.price", Offer, MONEY, "What the job is expected to cost in all.";
    EXPECTED_TIME = 64, "expected.time", Offer, SECONDS, "How long one execution is expected to take.";
    EXPECTED_FINISH = 65, "expected.finish", Offer, SECONDS, "Until the result is there: waiting, the inputs' way, and the run.";
    EXPECTED_CARBON = 66, "expected.carbon", Offer, PLAIN, "Grams of carbon dioxide of all that the job asks for.";
    EXPECTED_TRAFFIC = 68, "expected.traffic", Offer, MONEY, "What it costs the client to send the inputs there.";
    LINK_RTT = 67, "link.rtt", Offer, SECONDS, "There and back to the provider: measured, else guessed from the regions.";

    CLIENT = 100, "client", Job, TEXT, "The client's account, in hexadecimal.";
    CLIENT_KNOWN = 101, "client.known", Job, BOOL, "Whether the operator knows the account.";
    JOB_RUNTIME = 102, "job.runtime", Job, TEXT, "`wgsl` or `wasm`.";
    JOB_RUN_MAX = 103, "job.run_max", Job, SECONDS, "How long one execution may run.";
    JOB_MEMORY = 104, "job.memory", Job, BYTES, "Memory that it asks for.";
    JOB_INPUTS = 105, "job.inputs", Job, BYTES, "All that it reads.";
    JOB_OUTPUTS = 106, "job.outputs", Job, BYTES, "The most that it may write.";
    JOB_UNITS = 107, "job.units", Job, PLAIN, "Executions that it asks for.";
    JOB_BUDGET = 108, "job.budget", Job, MONEY, "The most that the client pays for all.";
    JOB_FUEL = 109, "job.fuel", Job, PLAIN, "Fuel that one execution may use.";
    HOUR = 110, "hour", Job, PLAIN, "The hour of the day in UTC, 0 to 23.";
}

impl Field {
    /// What is known of it; nothing of fields of later versions.
    pub fn info(self) -> Option<&'static FieldInfo> {
        FIELDS.iter().find(|info| info.field == self)
    }

    /// Whether many devices share it, as they do a maker, and a region.
    pub(crate) const fn is_of_class(self) -> bool {
        matches!(
            self,
            Self::REGION
                | Self::SANDBOX
                | Self::FIRM
                | Self::DEVICE_KIND
                | Self::DEVICE_MAKER
                | Self::DEVICE_MODEL
                | Self::DEVICE_DRIVER
                | Self::GPU_MAKER
                | Self::GPU_MODEL
        )
    }

    /// Whether it is what the client expects, which takes some reckoning.
    pub(crate) const fn is_expected(self) -> bool {
        matches!(
            self,
            Self::EXPECTED_PRICE
                | Self::EXPECTED_TIME
                | Self::EXPECTED_FINISH
                | Self::EXPECTED_CARBON
                | Self::EXPECTED_TRAFFIC
                | Self::LINK_RTT
        )
    }

    /// The field of a name.
    pub fn named(name: &str, scope: Scope) -> Option<&'static FieldInfo> {
        let mut of_scope = FIELDS.iter().filter(|info| info.scope == scope);
        of_scope.find(|info| info.name == name)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.info() {
            Some(info) => f.write_str(info.name),
            None => write!(f, "field-{}", self.0),
        }
    }
}
