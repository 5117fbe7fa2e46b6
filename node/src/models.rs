//! Models that this node serves to others.
//!
//! ```text
//! [[provide.model]] ─▶ entry ─▶ offer (models, devices)
//!                        │          ▲ those that answer
//!                        ▼          │
//!   driver ──leases──▶ serving ──questions──▶ upstream ──HTTP──▶ a model's server
//!   peers  ──calls───▶    └──▶ tokens used, for receipts
//! ```
//!
//! An operator who runs a server with an OpenAI-compatible interface puts its models on
//! the exchange: [`entry`] is what he says of them, [`upstream`] speaks with the server, and
//! nothing that a client says can make it speak with another; [`serving`] holds the leases,
//! gives each question a place, and counts tokens. A model is offered while its server
//! answers, and only then.
//!
//! Absent: prices and credit (the core's), and models that run in this node's own workers.

pub mod entry;
pub mod serving;
pub mod upstream;
