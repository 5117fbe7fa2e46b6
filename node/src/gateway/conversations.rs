//! Which provider a conversation is with.
//!
//! ```text
//! question ─▶ its beginning ─▶ Conversation ─▶ the provider of its last answer
//! ```
//!
//! A server that has answered the beginning of a conversation often has it in its cache still,
//! and reads what is new only. So questions that begin alike go to the same provider while it
//! has room. All that is known of them is a hash.
//!
//! Absent: what was said.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Map, Value};
use suanli_protocol::ids::{Hash, PeerId};

/// Conversations that are remembered.
const KEPT: usize = 4096;
/// How long after its last answer one is.
const KEPT_FOR: Duration = Duration::from_secs(1800);
/// Bytes of a text that say what it begins with.
const BEGINNING: usize = 1024;

/// A conversation: all that begin alike are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conversation(Hash);

impl Conversation {
    /// That of a question: of messages all up to the first that a user says, of a text its
    /// beginning. None of what is no conversation.
    pub fn of(fields: &Map<String, Value>) -> Option<Self> {
        if let Some(prompt) = fields.get("prompt").and_then(Value::as_str) {
            let bytes = prompt.as_bytes();
            return Some(Self(Hash::of(&bytes[..bytes.len().min(BEGINNING)])));
        }
        let messages = fields.get("messages")?.as_array()?;
        let is_users = |message: &Value| message["role"] == "user";
        let first = messages.iter().position(is_users)?;
        let beginning = serde_json::to_vec(&messages[..=first]).ok()?;
        Some(Self(Hash::of(&beginning)))
    }
}

/// With whom conversations are.
#[derive(Debug, Default)]
pub struct Conversations(BTreeMap<Conversation, (PeerId, Instant)>);

impl Conversations {
    /// The provider of its last answer.
    pub fn with(&self, conversation: Conversation) -> Option<PeerId> {
        let (provider, since) = self.0.get(&conversation)?;
        (since.elapsed() < KEPT_FOR).then_some(*provider)
    }

    /// A provider has answered.
    pub fn answered(&mut self, conversation: Conversation, provider: PeerId) {
        if self.0.len() >= KEPT && !self.0.contains_key(&conversation) {
            let half = self.0.values().map(|(_, since)| *since);
            let mut half: Vec<Instant> = half.collect();
            half.sort_unstable();
            let middle = half[half.len() / 2];
            self.0.retain(|_, (_, since)| *since > middle);
        }
        self.0.insert(conversation, (provider, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: &Value) -> Option<Conversation> {
        Conversation::of(value.as_object().unwrap())
    }

    fn message(role: &str, content: &str) -> Value {
        json!({ "role": role, "content": content })
    }

    #[test]
    fn a_conversation_is_known_by_how_it_begins() {
        let begins = [message("system", "be brief"), message("user", "hello")];
        let goes_on = [
            &begins[..],
            &[message("assistant", "hi"), message("user", "who are you")],
        ];
        let first = of(&json!({ "messages": begins })).unwrap();
        assert_eq!(of(&json!({ "messages": goes_on.concat() })), Some(first));
        let other = [message("system", "be long"), message("user", "hello")];
        assert_ne!(of(&json!({ "messages": other })), Some(first));
        let text = "x".repeat(BEGINNING);
        let longer = of(&json!({ "prompt": text.clone() + " and so on" }));
        assert_eq!(longer, of(&json!({ "prompt": text })));
        assert_eq!(of(&json!({ "input": "text" })), None);
        assert_eq!(of(&json!({ "messages": "hello" })), None);
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let mut all = Conversations::default();
        let one = |number: usize| Conversation(Hash::of(&number.to_le_bytes()));
        for number in 0..2 * KEPT {
            let provider = PeerId::from_bytes([u8::try_from(number % 256).unwrap(); 32]);
            all.answered(one(number), provider);
            assert_eq!(all.with(one(number)), Some(provider));
            assert!(all.0.len() <= KEPT);
        }
    }
}
