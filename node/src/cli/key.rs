//! `suanli key`: API keys for those who ask models through this node.

use clap::{Args, Subcommand};
use suanli_protocol::units::Amount;

use super::{
    context::Context,
    exit::{Exit, Failure},
    screen::{Table, age, until},
};
use crate::{
    api::types::{KeyInfo, KeyMade, KeyOrder},
    keys::KeyName,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Create(Create),
    /// Lists keys, what they may do, and what they have used
    ///
    /// What was spent is what was accepted of receipts in the days of the budget, and outlives
    /// the node's process; tokens are those since it began.
    List,
    /// Revokes a key at once; answers under way may end
    #[command(after_help = "\
The key stays in the list. Its name can be used for a new one, which goes on with what
its name has spent.

  suanli key revoke alice")]
    Revoke {
        /// What it is called
        name: String,
    },
}

/// Makes a key, and prints its secret this once
///
/// With it the models that others serve can be asked through this node, and nothing else of
/// the node. Its name is the principal of what it asks: receipts, `suanli budget` and
/// `budget` in the configuration know it.
#[derive(Debug, Args)]
#[command(after_help = "\
Prints the two lines that OpenAI's clients read from their environment:

  (umask 077; suanli key create alice > alice.env)
  suanli key create ci --budget 20 --days 7 --requests-per-minute 60
  suanli key create shop --models qwen2.5-7b-instruct,bge-m3 --expires 90")]
pub(super) struct Create {
    /// What it is called: letters, digits and . _ - @
    name: String,
    /// What it may spend, in the network's unit; anything if not given
    #[arg(long, value_name = "AMOUNT")]
    budget: Option<Amount>,
    /// In how many days, counted back from today [default: 30]
    #[arg(long, value_name = "N", requires = "budget")]
    days: Option<u16>,
    /// How many questions a minute
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u32>,
    /// How many tokens a minute, read and written
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<u32>,
    /// Which models, with commas between them; all if not given
    #[arg(long, value_name = "MODELS", value_delimiter = ',')]
    models: Vec<String>,
    /// After how many days it ends; never if not given
    #[arg(long, value_name = "DAYS")]
    expires: Option<u32>,
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(context).await,
            Self::List => {
                let keys: Vec<KeyInfo> = context.client()?.get("/v1/keys").await?;
                context.answer(&keys, |keys| table(keys));
                Ok(())
            }
            Self::Revoke { name } => {
                // It becomes a part of a path.
                let name = KeyName::new(&name)
                    .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
                let path = format!("/v1/keys/{name}/revoke");
                let key: KeyInfo = context.client()?.post(&path).await?;
                context.answer(&key, |key| format!("{} is revoked\n", key.name));
                Ok(())
            }
        }
    }
}

impl Create {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let order = KeyOrder {
            name: self.name,
            budget: self.budget,
            days: self.days,
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            models: self.models,
            expires_days: self.expires,
        };
        let made: KeyMade = context.client()?.post_json("/v1/keys", &order).await?;
        context.answer(&made, lines);
        Ok(())
    }
}

/// What a developer needs, as a shell reads it.
fn lines(made: &KeyMade) -> String {
    format!(
        "# the key {}: its secret is shown this once\nOPENAI_BASE_URL={}\nOPENAI_API_KEY={}\n",
        made.key.name,
        made.base_url,
        made.secret.tell()
    )
}

fn table(keys: &[KeyInfo]) -> String {
    if keys.is_empty() {
        return "there are no keys; `suanli key create NAME` makes one\n".to_owned();
    }
    let mut table = Table::new(&[
        "name", "state", "created", "expires", "models", ">req/min", ">tok/min", ">budget",
        ">days", ">spent", ">left", ">read", ">written",
    ]);
    for key in keys {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let number = |number: Option<u32>| or_dash(number.map(|it| it.to_string()));
        let amount = |amount: Option<Amount>| or_dash(amount.map(|it| it.to_string()));
        let models = match key.models.as_slice() {
            [] => "all".to_owned(),
            [one] => one.clone(),
            [first, more @ ..] => format!("{first} and {} more", more.len()),
        };
        table.row([
            key.name.clone(),
            key.state.clone(),
            age(key.created_ms),
            or_dash(key.expires_ms.map(until)),
            models,
            number(key.requests_per_minute),
            number(key.tokens_per_minute),
            amount(key.budget),
            key.days.to_string(),
            key.spent.to_string(),
            amount(key.left),
            key.tokens_read.to_string(),
            key.tokens_written.to_string(),
        ]);
    }
    table.render(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::ShownSecret;

    fn key(name: &str, state: &str) -> KeyInfo {
        KeyInfo {
            name: name.to_owned(),
            created_ms: u64::MAX,
            expires_ms: None,
            state: state.to_owned(),
            models: Vec::new(),
            requests_per_minute: None,
            tokens_per_minute: None,
            budget: None,
            days: 30,
            spent: Amount::ZERO,
            reserved: Amount::ZERO,
            left: None,
            tokens_read: 0,
            tokens_written: 0,
        }
    }

    #[test]
    fn keys_are_a_table_and_their_secrets_are_not_in_it() {
        let limited = KeyInfo {
            expires_ms: Some(0),
            models: vec!["small".into(), "large".into()],
            requests_per_minute: Some(60),
            tokens_per_minute: Some(90_000),
            budget: Some("20".parse().unwrap()),
            days: 7,
            spent: "1.5".parse().unwrap(),
            left: Some("18.5".parse().unwrap()),
            tokens_read: 7000,
            tokens_written: 120,
            ..key("ci", "expired")
        };
        insta::assert_snapshot!(table(&[limited, key("alice", "live")]), @r"
        NAME   STATE    CREATED  EXPIRES  MODELS            REQ/MIN  TOK/MIN  BUDGET  DAYS  SPENT   LEFT  READ  WRITTEN
        ci     expired  now      past     small and 1 more       60    90000   20.00     7   1.50  18.50  7000      120
        alice  live     now      -        all                     -        -       -    30   0.00      -     0        0
        ");
        assert!(table(&[]).contains("suanli key create"));
    }

    #[test]
    fn a_shell_can_read_what_a_developer_needs() {
        let made = KeyMade {
            key: key("alice", "live"),
            secret: ShownSecret::new("sk-suanli-0"),
            base_url: "http://127.0.0.1:7420/v1".into(),
        };
        insta::assert_snapshot!(lines(&made), @r"
        # the key alice: its secret is shown this once
        OPENAI_BASE_URL=http://127.0.0.1:7420/v1
        OPENAI_API_KEY=sk-suanli-0
        ");
        assert!(!format!("{made:?}").contains("sk-suanli-0"));
    }
}
