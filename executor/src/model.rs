//! Language models: from the bytes of a file to tokens.
//!
//! ```text
//!   bytes ─▶ gguf ─┬─▶ llama (configuration, weights) ─▶ an engine ─▶ logits
//!                  ├─▶ tokenizer ◀─ chat ◀─ messages                     │
//!                  └─  text ◀─ tokenizer::TextStream ◀──── sampler ◀─────┘
//! ```
//!
//! [`answers`] puts it all together: many questions at once, word by word. An answer that
//! must have a form is held to it by its [`grammar`], and [`writing`] cuts calls of tools out
//! of its text.
//!
//! ```text
//!   bytes ─▶ gguf ─┬─▶ encoder ─▶ cpu::encoder ◀─ tokens ◀─ wordpiece ◀─ texts
//!                  └─▶ wordpiece      └─▶ vectors
//! ```
//!
//! Weights are floats, or small numbers in [`blocks`].
//!
//! An encoder makes vectors of texts, and [`embeddings`] those of many who ask. [`convert`]
//! makes an encoder's file of what its makers publish.
//!
//! A file comes from a stranger, so [`gguf`] checks all of it before anyone looks
//! at a part, and [`llama`] checks each shape against the configuration: what comes
//! after that indexes without fear. A prompt comes from another stranger: its text
//! never becomes a control token, whatever it contains ([`tokenizer`]).
//!
//! What computes is an [`engine`]: [`cpu`] here, and in the worker one for devices.
//!
//! On the processor the same steps give the same logits, bit for bit, whatever else is
//! computed beside them, with any number of threads, and on any processor that has one of
//! the instruction sets that [`cpu`] knows, or none of them. So whoever doubts an answer
//! can compute it again.
//!
//! Absent: files, sockets, clocks, and a source of chance (the caller has the bytes
//! of the file and a seed); models other than Llama's family, with Qwen's, and BERT's; devices, which only
//! workers open.

pub mod answers;
pub mod blocks;
pub mod chat;
pub mod convert;
pub mod cpu;
pub mod embeddings;
pub mod encoder;
pub mod engine;
pub mod gguf;
pub mod grammar;
pub mod llama;
pub mod sampler;
pub mod testing;
pub mod tokenizer;
pub mod wordpiece;
pub mod writing;

#[cfg(test)]
mod real;
