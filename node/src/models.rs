//! Models that this node serves to others.
//!
//! ```text
//! [[provide.model]] ─▶ entry ─▶ offer (models, devices)
//!                        │          ▲ those that answer
//!                        ▼          │
//!   driver ──leases──▶ serving ──questions──▶ source ─┬▶ upstream ──HTTP──▶ a model's server
//!   peers  ──calls───▶    └──▶ tokens used,           └▶ own ──▶ a worker of this node
//!                              for receipts
//! ```
//!
//! An operator who runs a server with an OpenAI-compatible interface puts its models on
//! the exchange, or gives the file of a model to this node's own worker: [`entry`] is what
//! he says of them. [`upstream`] speaks with the server, and nothing that a client says can
//! make it speak with another; [`own`] speaks with the worker, in the form that clients
//! know ([`openai`], [`embeddings`]). [`stock`] knows which are served now, [`serving`] holds
//! the leases, gives each question a place, and counts tokens. [`shelf`] keeps models' files,
//! which [`package`] takes out of what is published, and [`pull`] gets from where that is. A
//! model is offered while it answers, and only then.
//!
//! Absent: prices and credit (the core's), and what a model computes (the executor's).

pub mod embeddings;
pub mod entry;
pub mod openai;
pub mod own;
pub mod package;
pub mod places;
pub mod pull;
pub mod scores;
pub mod serving;
pub mod shelf;
pub mod source;
pub mod stock;
pub mod upstream;
