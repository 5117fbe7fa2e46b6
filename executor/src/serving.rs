//! A model in a worker of its own.
//!
//! ```text
//!   node ── ask ──▶ ModelServer ──▶ task ══ socket ══ suanli-worker model
//!        ◀── words of one answer ─────┘  └─ ended: starts again, after a while
//! ```
//!
//! The worker belongs to the operator and serves many who ask; what they say lies in it
//! while it is answered and not longer. It is confined like every other: a model's file
//! comes from strangers too. When it dies, all answers break off, and it is started again;
//! until it is ready the model is down ([`ModelServer::state`]).
//!
//! The kernel ends a worker when the thread ends that started it: the task has a thread
//! and a runtime of its own.
//!
//! Absent: what a model is called, who may ask, and how much at once.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use crate::{
    child::{Child, WorkerProgram},
    executor::{DRIVER_FILE_BYTES, DRIVER_MEMORY},
    ipc::{
        IpcError, Reply, Request, Speaker, Start,
        model::{Ask, Embed, Facts, Load, Order, Word},
    },
    limits::{ASKS_MAX, MODEL_LOAD_TIME_MAX, START_TIME_MAX},
};

/// Wait after the first failure, doubled each time.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A worker that has served so long has started well.
const IS_WELL_AFTER: Duration = Duration::from_secs(60);
/// Orders on their way to a worker.
const ORDERS: usize = 64;
/// Memory beside weights and cache: the vocabulary, rows of a batch, threads, and the forms
/// of answers.
const MEMORY_BESIDE: u64 = 3 << 29;
/// Words of an answer beside its tokens.
const WORDS_BESIDE: usize = 4;

/// What is to be served, and how.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The worker's binary.
    pub program: WorkerProgram,
    /// The model's file.
    pub file: PathBuf,
    /// The adapter that computes, as a worker counts them; none for the processor.
    pub adapter: Option<u32>,
    /// Threads that compute, on the processor.
    pub threads: u32,
    /// Bytes that keys and values take at most.
    pub cache_bytes_max: u64,
    /// Tokens of a question and its answer together; 0 for what the model was made for.
    pub context_max: u32,
}

/// How a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelState {
    /// It is being read for the first time.
    Loading,
    /// It can be asked.
    Serves(Facts),
    /// It could not be read, or has ended, and is being read again.
    Down(String),
}

/// Asks a model. The worker ends with the last of these.
#[derive(Debug, Clone)]
pub struct ModelServer {
    orders: mpsc::Sender<Command>,
    state: watch::Receiver<ModelState>,
    /// The number of the last question.
    numbers: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Command {
    Ask(Order, mpsc::Sender<Word>),
    Stop(u64),
}

/// An answer on its way. Dropping it stops it.
#[derive(Debug)]
pub struct ModelAnswer {
    words: mpsc::Receiver<Word>,
    number: Option<u64>,
    orders: mpsc::Sender<Command>,
}

impl ModelAnswer {
    /// The next word. None after the last, and when the worker has died.
    pub async fn next(&mut self) -> Option<Word> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// The same, as a step of a future.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Word>> {
        let word = self.words.poll_recv(context);
        if let Poll::Ready(Some(word)) = &word {
            self.number = word.number().filter(|_| !word.is_last());
        }
        word
    }
}

impl Drop for ModelAnswer {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            // If there is no room, its next word finds nobody, which says the same.
            let _ = self.orders.try_send(Command::Stop(number));
        }
    }
}

impl ModelServer {
    /// Starts the worker.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(config: ModelConfig) -> std::io::Result<Self> {
        let (orders, queue) = mpsc::channel(ASKS_MAX);
        let (states, state) = watch::channel(ModelState::Loading);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let task = Task {
            config,
            queue,
            states,
            answers: BTreeMap::new(),
            file: None,
        };
        std::thread::Builder::new()
            .name("suanli-model".to_owned())
            .spawn(move || runtime.block_on(task.run()))?;
        let numbers = Arc::default();
        Ok(Self {
            orders,
            state,
            numbers,
        })
    }

    /// How it is, and how it becomes.
    pub fn state(&self) -> watch::Receiver<ModelState> {
        self.state.clone()
    }

    /// Asks. Of a model that is down no word comes.
    pub async fn ask(&self, ask: Ask) -> ModelAnswer {
        let most = ask.tokens_max.unwrap_or(u32::MAX);
        let tokens = self.context().map_or(0, |context| most.min(context));
        let tokens = usize::try_from(tokens).unwrap_or(0);
        let ask = Box::new(ask);
        self.order(tokens, |number| Order::Ask { number, ask })
            .await
    }

    /// Asks an encoder. Of a model that is down no word comes.
    pub async fn embed(&self, embed: Embed) -> ModelAnswer {
        let vectors = embed.inputs.len();
        let embed = Box::new(embed);
        self.order(vectors, |number| Order::Embed { number, embed })
            .await
    }

    fn context(&self) -> Option<u32> {
        match &*self.state.borrow() {
            ModelState::Serves(facts) => Some(facts.context),
            ModelState::Loading | ModelState::Down(_) => None,
        }
    }

    /// All that an answer may have fits: the task never waits for who hears it.
    async fn order(&self, words: usize, order: impl FnOnce(u64) -> Order) -> ModelAnswer {
        let (sender, words) = mpsc::channel(words + WORDS_BESIDE);
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let serves = self.context().is_some();
        if serves {
            let asked = Command::Ask(order(number), sender);
            let _ = self.orders.send(asked).await;
        }
        ModelAnswer {
            words,
            // Whoever hangs up before the first word stops it as well.
            number: Some(number).filter(|_| serves),
            orders: self.orders.clone(),
        }
    }
}

/// The task that has the worker.
struct Task {
    config: ModelConfig,
    queue: mpsc::Receiver<Command>,
    states: watch::Sender<ModelState>,
    answers: BTreeMap<u64, mpsc::Sender<Word>>,
    /// The model's file: the one that was opened first, whatever lies there later.
    file: Option<File>,
}

/// Why a worker serves no longer.
enum End {
    /// Nobody can ask any more.
    NotNeeded,
    /// It has failed.
    Failed(String),
}

impl Task {
    async fn run(mut self) {
        let mut backoff = BACKOFF_FIRST;
        loop {
            let began = std::time::Instant::now();
            let why = match self.serve().await {
                End::NotNeeded => return,
                End::Failed(why) => why,
            };
            // Those who hear them find that no more comes.
            self.answers.clear();
            tracing::warn!(file = %self.config.file.display(), why, "a model's worker ended");
            self.states.send_replace(ModelState::Down(why));
            if began.elapsed() >= IS_WELL_AFTER {
                backoff = BACKOFF_FIRST;
            }
            if self.wait(backoff).await.is_none() {
                return;
            }
            backoff = (2 * backoff).min(BACKOFF_MAX);
        }
    }

    /// Waits, and leaves all questions unanswered. None if nobody can ask any more.
    async fn wait(&mut self, time: Duration) -> Option<()> {
        let mut over = std::pin::pin!(sleep(time));
        loop {
            tokio::select! {
                () = &mut over => return Some(()),
                command = self.queue.recv() => drop(command?),
            }
        }
    }

    async fn serve(&mut self) -> End {
        let mut worker = match self.load().await {
            Ok((worker, facts)) => {
                self.states.send_replace(ModelState::Serves(facts));
                worker
            }
            Err(why) => return End::Failed(why),
        };
        let (orders, queue) = mpsc::channel(ORDERS);
        let speaking = tokio::spawn(speak(worker.speaker().clone(), queue));
        let end = self.converse(&mut worker, &orders).await;
        speaking.abort();
        match end {
            None => {
                worker.end_now().await;
                End::NotNeeded
            }
            Some(error) => {
                let ended = worker.end_after_close().await;
                End::Failed(format!("{error} ({ended})"))
            }
        }
    }

    /// None if nobody can ask any more.
    async fn converse(
        &mut self,
        worker: &mut Child,
        orders: &mpsc::Sender<Order>,
    ) -> Option<IpcError> {
        loop {
            tokio::select! {
                reply = worker.receive() => match reply {
                    Ok(Reply::Model(word)) => {
                        if let Some(stop) = self.pass(word) {
                            // Its next word says so again.
                            let _ = orders.try_send(stop);
                        }
                    }
                    Ok(Reply::Failed { detail, .. }) => {
                        return Some(IpcError::Io(std::io::Error::other(detail.to_string())));
                    }
                    Ok(_) => return Some(IpcError::Closed),
                    Err(error) => return Some(error),
                },
                next = next_order(&mut self.queue, orders) => {
                    let (place, command) = next?;
                    let order = match command {
                        Command::Ask(order, words) => {
                            if let Order::Ask { number, .. } | Order::Embed { number, .. } = &order {
                                self.answers.insert(*number, words);
                            }
                            order
                        }
                        Command::Stop(number) => Order::Stop(number),
                    };
                    place.send(order);
                }
            }
        }
    }

    /// Gives a word to who hears it. The order to stop, if nobody does.
    fn pass(&mut self, word: Word) -> Option<Order> {
        let number = word.number()?;
        let is_last = word.is_last();
        let hearer = self.answers.get(&number);
        let is_lost = hearer.is_none_or(|hearer| hearer.try_send(word).is_err());
        if is_last || is_lost {
            self.answers.remove(&number);
        }
        (is_lost && !is_last).then_some(Order::Stop(number))
    }

    async fn load(&mut self) -> Result<(Child, Facts), String> {
        let path = &self.config.file;
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let file = match self.file.take() {
            Some(file) => file,
            None => File::open(path).map_err(failed)?,
        };
        let file = self.file.insert(file);
        let bytes = file.metadata().map_err(failed)?.len();
        // The file's pages count while it is read, and weights grow by up to a half.
        let model_bytes = (bytes.saturating_mul(3)).saturating_add(self.config.cache_bytes_max);
        let (driver_memory, driver_files) = match self.config.adapter {
            // Drivers keep buffers in memory files, and a software one has no other place.
            Some(_) => (DRIVER_MEMORY, model_bytes.saturating_add(DRIVER_FILE_BYTES)),
            None => (0, 0),
        };
        let start = Start {
            parent: std::process::id(),
            address_space_max: 1 << 42,
            memory_max: model_bytes
                .saturating_add(MEMORY_BESIDE)
                .saturating_add(driver_memory),
            file_bytes_max: driver_files,
            cpu_s_max: None,
            adapter: self.config.adapter,
        };
        let spawned = self.config.program.spawn("model", start);
        let mut worker = spawned.map_err(|error| error.to_string())?;
        let loading = async {
            match timeout(START_TIME_MAX, worker.receive()).await {
                Ok(Ok(Reply::Ready { .. })) => {}
                other => return Err(unexpected(other.ok())),
            }
            let load = Request::Model(Order::Load(Load {
                threads: self.config.threads,
                cache_bytes_max: self.config.cache_bytes_max,
                context_max: self.config.context_max,
            }));
            let sent = worker.send(&load, &[file.as_fd()]).await;
            sent.map_err(|error| error.to_string())?;
            match timeout(MODEL_LOAD_TIME_MAX, worker.receive()).await {
                Ok(Ok(Reply::Model(Word::Loaded(facts)))) => Ok(facts),
                other => Err(unexpected(other.ok())),
            }
        };
        match loading.await {
            Ok(facts) => Ok((worker, facts)),
            Err(why) => {
                let ended = worker.end_now().await;
                tracing::debug!(%ended, "a model's worker did not start");
                Err(why)
            }
        }
    }
}

/// What a worker says that should have said something else.
fn unexpected(reply: Option<Result<Reply, IpcError>>) -> String {
    match reply {
        None => "it gave no answer in time".to_owned(),
        Some(Ok(Reply::Failed { detail, .. })) => detail.to_string(),
        Some(Ok(_)) => "it said something else".to_owned(),
        Some(Err(error)) => error.to_string(),
    }
}

/// Speaks while others listen: a worker that writes is not one that reads.
async fn speak(speaker: Speaker, mut orders: mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        match speaker.send(&Request::Model(order), &[]).await {
            Ok(()) => {}
            // Whoever makes orders keeps them shorter; no other waits for one that is not.
            Err(error @ IpcError::FrameTooLong { .. }) => tracing::error!(%error, "not asked"),
            Err(_) => return,
        }
    }
}

/// The next command, and a place for what follows from it.
async fn next_order<'a>(
    queue: &mut mpsc::Receiver<Command>,
    orders: &'a mpsc::Sender<Order>,
) -> Option<(mpsc::Permit<'a, Order>, Command)> {
    // A worker that has ended says so by itself.
    let Ok(place) = orders.reserve().await else {
        return std::future::pending().await;
    };
    Some((place, queue.recv().await?))
}
