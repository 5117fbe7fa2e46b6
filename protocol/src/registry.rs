//! Registered numbers: kinds of envelopes, runtimes, features, kinds of
//! devices, sandbox levels, and reasons.
//!
//! They are numbers on the wire, never enum variants, so that a node keeps,
//! forwards and prices what a later version added. Numbers are only ever added.

use std::fmt;

use bincode::{Decode, Encode};
use serde::{Serialize, Serializer};

use crate::envelope::Kind;

/// Kinds of envelopes.
pub mod kind {
    use super::Kind;

    /// [`crate::delegation::Delegation`]
    pub const DELEGATION: Kind = Kind(1);
    /// [`crate::delegation::Revocation`]
    pub const REVOCATION: Kind = Kind(2);
    /// [`crate::offer::Offer`]
    pub const OFFER: Kind = Kind(3);
    /// [`crate::offer::Withdrawal`]
    pub const WITHDRAWAL: Kind = Kind(4);
    /// [`crate::deal::Request`]
    pub const REQUEST: Kind = Kind(5);
    /// [`crate::deal::Quote`]
    pub const QUOTE: Kind = Kind(6);
    /// [`crate::deal::Agreement`]
    pub const AGREEMENT: Kind = Kind(7);
    /// [`crate::receipt::Receipt`]
    pub const RECEIPT: Kind = Kind(8);
    /// [`crate::receipt::Acceptance`]
    pub const ACCEPTANCE: Kind = Kind(9);
    /// [`crate::voucher::Voucher`]
    pub const VOUCHER: Kind = Kind(10);
    /// [`crate::voucher::VoucherAck`]
    pub const VOUCHER_ACK: Kind = Kind(11);
    /// [`crate::voucher::Settlement`]
    pub const SETTLEMENT: Kind = Kind(12);
    /// [`crate::grant::Grant`]
    pub const GRANT: Kind = Kind(13);
}

macro_rules! registered {
    ($(#[$doc:meta])* $name:ident($prefix:literal) { $($(#[$vdoc:meta])* $konst:ident = $number:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
        pub struct $name(pub u16);

        impl $name {
            $($(#[$vdoc])* pub const $konst: Self = Self($number);)*

            const NAMES: &[(Self, &'static str)] = &[$((Self::$konst, $text)),*];

            /// The number registered under a name.
            pub fn named(name: &str) -> Option<Self> {
                Self::NAMES.iter().find(|(_, known)| *known == name).map(|(id, _)| *id)
            }

            /// All registered names, for messages.
            pub fn names() -> impl Iterator<Item = &'static str> {
                Self::NAMES.iter().map(|(_, name)| *name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match Self::NAMES.iter().find(|(id, _)| id == self) {
                    Some((_, name)) => f.pad(name),
                    None => write!(f, concat!($prefix, "-{}"), self.0),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

registered! {
    /// What an executor can run.
    Runtime("runtime") {
        /// A graph of WGSL compute passes.
        WGSL = 1, "wgsl";
        /// A WebAssembly module.
        WASM = 2, "wasm";
        /// A language model.
        MODEL = 3, "model";
        /// A container image.
        OCI = 4, "oci";
    }
}

registered! {
    /// Something that a runtime can do beyond its minimum.
    Feature("feature") {
        /// Half-precision floats in shaders.
        F16 = 1, "f16";
        /// Subgroup operations in shaders.
        SUBGROUPS = 2, "subgroups";
        /// Device timestamps.
        TIMESTAMPS = 3, "timestamps";
    }
}

registered! {
    /// What kind of thing computes.
    DeviceKind("device") {
        /// A processor, or a software adapter on one.
        CPU = 1, "cpu";
        /// A graphics processor.
        GPU = 2, "gpu";
        /// Another accelerator.
        NPU = 3, "npu";
    }
}

registered! {
    /// What a model can be asked for.
    Endpoint("endpoint") {
        /// The next message of a conversation.
        CHAT_COMPLETIONS = 1, "chat/completions";
        /// How a text goes on.
        COMPLETIONS = 2, "completions";
        /// What texts mean, as vectors.
        EMBEDDINGS = 3, "embeddings";
        /// Whether an answer that is given is what the model would have written.
        SCORES = 4, "scores";
    }
}

registered! {
    /// What a speed is a speed of.
    SpeedKind("speed") {
        /// 32-bit floating-point operations per second.
        FP32 = 1, "fp32";
        /// 16-bit floating-point operations per second.
        FP16 = 2, "fp16";
        /// Bytes of device memory per second.
        MEMORY = 3, "memory";
        /// Bytes between host and device per second.
        TRANSFER = 4, "transfer";
        /// Units of WebAssembly fuel per second, in one execution.
        FUEL = 5, "fuel";
        /// 32-bit floating-point operations per second in a matrix product, from the
        /// order to a committed result: what a challenge asks for.
        MATMUL = 6, "matmul";
        /// Bytes per second that the node's store makes durable.
        DISK = 7, "disk";
    }
}

registered! {
    /// How well a job is locked in. Higher is stronger.
    SandboxLevel("sandbox") {
        /// A process of its own, without environment, privileges or open files.
        PROCESS = 1, "process";
        /// And no network, no file system, few system calls.
        CONFINED = 2, "confined";
        /// And resources capped by the kernel.
        CAPPED = 3, "capped";
    }
}

registered! {
    /// What verification of a result was asked for or done.
    Verification("verification") {
        /// Hashes and amounts only.
        HASHES = 0, "hashes";
        /// The same work by other providers.
        REPLICAS = 1, "replicas";
        /// A random part again elsewhere.
        AUDIT = 2, "audit";
        /// The same work by other providers, whose results all differed.
        UNDECIDED = 3, "undecided";
        /// The same work by other providers, whose floats differ within the job's
        /// tolerance.
        REPLICAS_WITHIN = 4, "replicas-within";
        /// A random part again elsewhere, whose floats differ within the job's
        /// tolerance.
        AUDIT_WITHIN = 5, "audit-within";
        /// That outputs are the products that the job says, by Freivalds' check.
        FREIVALDS = 6, "freivalds";
    }
}

impl Verification {
    /// Whether the result was compared with others, and they agreed. A check of its
    /// products is no such thing: who is told of it beforehand earns no trust by it.
    pub const fn is_agreement(self) -> bool {
        matches!(
            self,
            Self::REPLICAS | Self::AUDIT | Self::REPLICAS_WITHIN | Self::AUDIT_WITHIN
        )
    }
}

registered! {
    /// What keeps inputs from the provider's eyes.
    Confidentiality("confidentiality") {
        /// The provider's word.
        NONE = 0, "none";
    }
}

registered! {
    /// Why somebody said no, gave up, or failed.
    Reason("reason") {
        /// Nothing to say.
        UNSPECIFIED = 0, "unspecified";
        /// The offer is unknown, replaced or expired.
        OFFER_GONE = 1, "offer-gone";
        /// All slots are held or busy.
        BUSY = 2, "busy";
        /// The client has as many holds as one may have.
        TOO_MANY_HOLDS = 3, "too-many-holds";
        /// The client's credit window is used up.
        CREDIT_EXHAUSTED = 4, "credit-exhausted";
        /// The budget for all strangers is used up.
        STRANGERS_EXHAUSTED = 5, "strangers-exhausted";
        /// The provider does not serve this account.
        NOT_ALLOWED = 6, "not-allowed";
        /// The runtime is not offered.
        NO_RUNTIME = 7, "no-runtime";
        /// A feature is not offered.
        NO_FEATURE = 8, "no-feature";
        /// No device of that kind.
        NO_DEVICE = 9, "no-device";
        /// Too little device memory.
        TOO_LITTLE_MEMORY = 10, "too-little-memory";
        /// The sandbox is weaker than asked for.
        SANDBOX_TOO_WEAK = 11, "sandbox-too-weak";
        /// It would cost more than the client pays.
        OVER_BUDGET = 12, "over-budget";
        /// Longer than the provider runs anything.
        TOO_LONG = 13, "too-long";
        /// The region is not wanted.
        OTHER_REGION = 14, "other-region";
        /// The quote expired before it was taken.
        QUOTE_EXPIRED = 15, "quote-expired";
        /// The quote is not known here.
        QUOTE_UNKNOWN = 16, "quote-unknown";
        /// The channel between the two is frozen by a proof.
        CHANNEL_FROZEN = 17, "channel-frozen";
        /// The kind of work is not served.
        NO_SUCH_WORK = 18, "no-such-work";
        /// The node begins nothing new: it is stopping, or paused.
        DRAINING = 19, "draining";
        /// The provider can't store what it would sign.
        STORE_FULL = 20, "store-full";
        /// Inputs or outputs are more than the provider keeps.
        TOO_LARGE = 21, "too-large";
        /// The offer is not firm.
        NOT_FIRM = 22, "not-firm";
        /// A counter-offer out of the provider's bounds.
        COUNTER_REFUSED = 23, "counter-refused";
        /// Verification or confidentiality that the provider doesn't give.
        UNSUPPORTED_TERMS = 24, "unsupported-terms";
        /// The provider failed lately and is left out for a while.
        EXCLUDED = 25, "excluded";
        /// Only a software adapter where a device was asked for.
        SOFTWARE_ONLY = 26, "software-only";
        /// The offer is the client's own.
        OWN_OFFER = 27, "own-offer";
        /// Its answer to a capacity challenge was wrong.
        FAILED_CHALLENGE = 28, "failed-challenge";
        /// It was challenged enough for now.
        CHALLENGED_ENOUGH = 29, "challenged-enough";
        /// The job's own condition rules the offer out.
        CONDITION = 30, "condition";
        /// The provider's condition rules the job or its client out.
        NOT_ACCEPTED = 31, "not-accepted";
        /// The model is not served.
        NO_MODEL = 32, "no-model";
        /// The model's server does not answer.
        MODEL_DOWN = 33, "model-down";
        /// It can't go on with an answer that another has begun.
        NOT_RESUMABLE = 34, "not-resumable";

        /// The job's program is wrong.
        INVALID_PROGRAM = 40, "invalid-program";
        /// It ran longer than agreed.
        DEADLINE = 41, "deadline";
        /// The client cancelled.
        CANCELLED = 42, "cancelled";
        /// The device ran out of memory, or the job over its cap.
        OUT_OF_MEMORY = 43, "out-of-memory";
        /// The device was lost.
        DEVICE_LOST = 44, "device-lost";
        /// The worker died.
        WORKER_DIED = 45, "worker-died";
        /// Inputs could not be fetched.
        INPUTS_MISSING = 46, "inputs-missing";
        /// More output than agreed.
        OUTPUT_TOO_LARGE = 47, "output-too-large";
        /// The provider's fault.
        PROVIDER_FAULT = 48, "provider-fault";
        /// The job made its worker try what the sandbox takes for an attack.
        FORBIDDEN_CALL = 49, "forbidden-call";
        /// The program broke a rule of its machine, such as the bounds of memory.
        TRAPPED = 50, "trapped";
        /// The program ended by itself and said that it failed.
        EXIT_CODE = 51, "exit-code";
        /// It used all the fuel that was agreed.
        OUT_OF_FUEL = 52, "out-of-fuel";
        /// It did not write an output that the job names.
        OUTPUT_MISSING = 53, "output-missing";
        /// Its turn in the provider's queue did not come in time.
        WAITED_TOO_LONG = 54, "waited-too-long";
        /// Whom the job is for has not that much of its budget left.
        PRINCIPAL_BUDGET = 55, "principal-budget";

        /// The amount doesn't follow from usage and prices.
        WRONG_AMOUNT = 60, "wrong-amount";
        /// Outputs don't match their hashes, or never came.
        WRONG_OUTPUTS = 61, "wrong-outputs";
        /// Another attempt at the same work was accepted.
        SUPERSEDED = 62, "superseded";
        /// The receipt contradicts the agreement.
        CONTRADICTS_AGREEMENT = 63, "contradicts-agreement";
        /// Other providers' results agree with each other and not with this one, or an
        /// output is not the product that the job says.
        WRONG_RESULT = 64, "wrong-result";
        /// Its quote was not what its offer and the request say.
        NOT_AS_OFFERED = 65, "not-as-offered";

        /// No known offer fits.
        NO_OFFER = 80, "no-offer";
        /// Every provider that fits was tried.
        PROVIDERS_USED_UP = 81, "providers-used-up";
        /// The provider stopped answering.
        PROVIDER_LOST = 82, "provider-lost";
        /// The job's own time is over.
        JOB_DEADLINE = 83, "job-deadline";
        /// Too many results of one unit, and no two agree.
        RESULTS_DIFFER = 84, "results-differ";
    }
}

impl Reason {
    /// Whether the job itself is at fault, so that another provider would not
    /// help.
    pub fn is_jobs_fault(self) -> bool {
        matches!(
            self,
            Self::INVALID_PROGRAM
                | Self::DEADLINE
                | Self::OUT_OF_MEMORY
                | Self::OUTPUT_TOO_LARGE
                | Self::FORBIDDEN_CALL
                | Self::TRAPPED
                | Self::EXIT_CODE
                | Self::OUT_OF_FUEL
                | Self::OUTPUT_MISSING
        )
    }

    /// A sentence for a person, with what to do.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::OFFER_GONE => "the offer was replaced or has expired; ask again",
            Self::BUSY => "all its slots are in use; try again later or allow more providers",
            Self::TOO_MANY_HOLDS => {
                "you hold as many of its quotes as one client may; take or release one"
            }
            Self::CREDIT_EXHAUSTED => {
                "your credit there is used up; settle what you owe, or ask the operator for a larger window"
            }
            Self::STRANGERS_EXHAUSTED => {
                "it has lent all that it lends to unknown accounts; ask the operator to know yours"
            }
            Self::NOT_ALLOWED => "it does not serve your account; ask the operator to allow it",
            Self::NO_RUNTIME => "it does not run this kind of job",
            Self::NO_MODEL => "it does not serve this model",
            Self::MODEL_DOWN => "the model's server does not answer; another provider may serve it",
            Self::NOT_RESUMABLE => "it can't go on with an answer that another has begun",
            Self::NO_FEATURE => "it lacks a feature that the job asks for",
            Self::NO_DEVICE => "it has no device of the kind that the job asks for",
            Self::TOO_LITTLE_MEMORY => {
                "its device memory is too small; lower limits.memory if the job can do with less"
            }
            Self::SANDBOX_TOO_WEAK => "its sandbox is weaker than the job asks for",
            Self::OVER_BUDGET => {
                "it would cost more than market.max_price; raise that, or lower limits.run"
            }
            Self::TOO_LONG => "limits.run is longer than it runs anything",
            Self::OTHER_REGION => "it is not in a region that the job allows",
            Self::QUOTE_EXPIRED => "the quote expired before it was taken",
            Self::QUOTE_UNKNOWN => "the provider does not know the quote; ask again",
            Self::CHANNEL_FROZEN => "the account between you is frozen; see `suanli channel show`",
            Self::NO_SUCH_WORK => "it does not serve this kind of work",
            Self::DRAINING => {
                "it begins nothing new now: it is stopping, or its operator paused it"
            }
            Self::STORE_FULL => "its disk is full",
            Self::TOO_LARGE => "the inputs or outputs are larger than it takes",
            Self::NOT_FIRM => "its offer can't be taken without a quote",
            Self::COUNTER_REFUSED => "it does not go that low",
            Self::UNSUPPORTED_TERMS => {
                "it does not give the verification or confidentiality asked for"
            }
            Self::EXCLUDED => "it failed lately and is left out for a while",
            Self::OWN_OFFER => "it is your own offer: a node does not buy from itself",
            Self::CONDITION => "market.where rules it out",
            Self::NOT_ACCEPTED => "its operator accepts no such jobs",
            Self::FAILED_CHALLENGE => {
                "its answer to a capacity challenge was wrong; `suanli offer challenge` asks it again"
            }
            Self::CHALLENGED_ENOUGH => {
                "it was challenged as often as it allows; ask again in an hour"
            }
            Self::SOFTWARE_ONLY => {
                "it computes on its processor only; set market.device = \"any\" to allow that"
            }
            Self::NO_OFFER => {
                "no known offer fits; `suanli run FILE --dry-run` says why for each provider"
            }
            Self::PROVIDERS_USED_UP => {
                "every provider that fits was tried; `suanli job show` lists what each said"
            }
            Self::PROVIDER_LOST => "the provider stopped answering",
            Self::JOB_DEADLINE => "the job's time was over; raise limits.total if it needs more",
            _ => self.sentence_of_a_result(),
        }
    }

    fn sentence_of_a_result(self) -> &'static str {
        match self {
            Self::WRONG_AMOUNT => "the amount did not follow from usage and prices",
            Self::WRONG_OUTPUTS => "the outputs did not arrive as the receipt says",
            Self::SUPERSEDED => "another attempt at the same work was accepted",
            Self::CONTRADICTS_AGREEMENT => "the receipt contradicts the agreement",
            Self::WRONG_RESULT => {
                "others' results agree with each other and not with its own, or it is not the product that the job says"
            }
            Self::NOT_AS_OFFERED => {
                "its quote was dearer than its own signed offer, or for something else than was asked"
            }
            Self::RESULTS_DIFFER => {
                "no two providers had the same result: see `[verify]` in docs/job-spec.md for what can be compared"
            }
            _ => self.sentence_of_an_execution(),
        }
    }

    fn sentence_of_an_execution(self) -> &'static str {
        match self {
            Self::INVALID_PROGRAM => {
                "the job's program is wrong; check it with `suanli run --dry-run`"
            }
            Self::DEADLINE => "it ran longer than limits.run; raise that if it needs the time",
            Self::CANCELLED => "it was cancelled",
            Self::OUT_OF_MEMORY => "it needed more memory than limits.memory or the device has",
            Self::DEVICE_LOST => "the provider's device was lost",
            Self::WORKER_DIED => "the provider's worker process died",
            Self::INPUTS_MISSING => "the provider could not fetch the inputs",
            Self::WAITED_TOO_LONG => "its turn in the provider's queue did not come in time",
            Self::PRINCIPAL_BUDGET => "whom the job is for has not that much of its budget left",
            Self::OUTPUT_TOO_LARGE => "it wrote more than limits.output; raise that",
            Self::PROVIDER_FAULT => "the provider failed",
            Self::FORBIDDEN_CALL => "it made its worker try what no job may do",
            Self::TRAPPED => "its program trapped; its log says where",
            Self::EXIT_CODE => {
                "its program ended with an exit code that is not 0; its log says what it said"
            }
            Self::OUT_OF_FUEL => "it used all its fuel; raise limits.fuel if it needs more",
            Self::OUTPUT_MISSING => "its program did not write an output that the job names",
            _ => "no reason was given",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_registered_reason_has_a_sentence_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for (reason, name) in Reason::NAMES.iter().skip(1) {
            assert!(
                seen.insert(reason.sentence()),
                "{name} says nothing of its own"
            );
        }
    }

    #[test]
    fn names_and_numbers_are_unique() {
        let names: std::collections::BTreeSet<_> = Reason::names().collect();
        let numbers: std::collections::BTreeSet<_> =
            Reason::NAMES.iter().map(|(id, _)| id.0).collect();
        assert_eq!(names.len(), Reason::NAMES.len());
        assert_eq!(numbers.len(), Reason::NAMES.len());
    }
}
