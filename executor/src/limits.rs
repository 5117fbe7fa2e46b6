//! Every bound of the executor, each with its reason.
//!
//! A bound that an adapter sets (bytes in one binding, workgroups per
//! dimension) is not here: the worker reads those from the device and the
//! smaller of the two holds.

use std::time::Duration;

/// WGSL source in bytes. Hand-written kernels stay under 64 KiB; generated
/// ones rarely reach this.
pub const SOURCE_BYTES_MAX: usize = 1 << 20;
/// Words and signs of a WGSL source. The parser's time grows with the square of
/// a function's length; a source with so many takes it about a second.
pub const TOKENS_MAX: usize = 1 << 18;
/// Functions, types, constants and variables of a WGSL source, and types that it
/// implies. The parser looks at all of them for each: so many take half a second.
pub const DECLARATIONS_MAX: usize = 4096;
/// Words and signs of a WGSL source when constants, structures and aliases are put in
/// place of their names, as the parser does in part: a million took it three seconds
/// and 700 MB. Large tables in unrolled kernels have under 100,000.
pub const EXPANDED_TOKENS_MAX: u64 = 1 << 18;
/// Operators, brackets, template lists and `else if` that stand in one another.
/// The parser overflows a stack of 64 MiB somewhere above 32,000.
pub const NESTING_MAX: usize = 4096;
/// Blocks in one another, `else if` included: twice what WGSL guarantees.
/// Drivers recurse here too.
pub const BLOCK_DEPTH_MAX: usize = 256;
/// Calls in one another. Drivers inline at each level anew, so that a chain
/// costs the square of its length: 1,000 took 4 s and 1.7 GB.
pub const CALL_DEPTH_MAX: u64 = 64;
/// Functions that an entry point is made of when each call is replaced by what
/// it calls, as every driver does. Large kernels have hundreds; 16,000 took a
/// second, 500,000 half a minute.
pub const CALLS_MAX: u64 = 4096;
/// Statements, expressions and moved words of an entry point when all calls are
/// inlined. A software driver's time grows with the square of it: 4 s here at
/// worst. Unrolled matrix products and hashes have under 20,000.
pub const WORK_MAX: u64 = 1 << 16;
/// The same of all a graph's different pipelines together.
pub const WORK_TOTAL_MAX: u64 = 1 << 17;
/// Bytes of all variables of a function, and of all private ones that an entry
/// point uses: twice what WGSL guarantees. They are set to zero word by word:
/// 32 KiB took a driver 6 s.
pub const LOCAL_BYTES_MAX: u64 = 16 << 10;
/// The same of all functions that are active at once: stack, or registers.
pub const CHAIN_BYTES_MAX: u64 = 32 << 10;
/// Bytes of an entry point's workgroup variables: what the largest adapters
/// give. The device's own limit holds too.
pub const WORKGROUP_BYTES_MAX: u64 = 64 << 10;
/// Bytes of one inline buffer. Larger data travels as an input blob.
pub const INLINE_BYTES_MAX: usize = 1 << 20;
/// Bytes of an encoded graph: the source, some inline tables, the structure.
pub const SPEC_BYTES_MAX: usize = 4 << 20;
/// Units of an array: an evening of work for a hundred machines, and lists of what
/// they have that stay below a few megabytes.
pub const UNITS_MAX: usize = 65_536;
/// Units that have a file each: with what is theirs together they are a job's inputs.
pub const ARRAY_FILES_MAX: usize = 16_000;
/// Agreements that stand at once for one array: as many as a node's book has good
/// offers, and few enough to watch.
pub const PARALLEL_MAX: u16 = 256;
/// Places in which the units of an array differ: more than people name.
pub const COLUMNS_MAX: usize = 1024;
/// Bytes of a job's spec as it travels: its program, and a hundred bytes for each unit
/// of the largest array. Below what one value may claim when it is decoded.
pub const TEMPLATE_BYTES_MAX: usize = SPEC_BYTES_MAX + (8 << 20);
/// Buffers in a graph. WebGPU guarantees 8 storage buffers per pass; many
/// passes share a few dozen.
pub const BUFFERS_MAX: usize = 64;
/// Passes in a graph; longer chains use `repeat`.
pub const PASSES_MAX: usize = 256;
/// Bindings of one pass. No adapter gives more storage buffers to a stage
/// than a graph may have buffers.
pub const BINDINGS_MAX: usize = 64;
/// Pipeline constants of one pass.
pub const CONSTANTS_MAX: usize = 32;
/// Features that a graph names, or an adapter has: more than are registered.
pub const FEATURES_MAX: usize = 16;
/// Buffers in a checkpoint: what passes change, which is less than what they read.
pub const CHECKPOINT_BUFFERS_MAX: usize = 16;
/// Bytes of a checkpoint. It is copied while the job goes on, and travels each time;
/// a worker's memory holds it beside all else.
pub const CHECKPOINT_BYTES_MAX: u64 = 256 << 20;
/// Time from one checkpoint that is kept to the next: what is lost with a worker is
/// little more than that, and copies stay far below what a disk can take.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// Outputs of a graph.
pub const OUTPUTS_MAX: usize = 32;
/// Bytes of an output, and of all together where they come back in the worker's
/// last frame, that stay in memory on their way out of the executor: files would
/// cost more than all else that a small job does.
pub const OUTPUT_MEMORY_MAX: u64 = 32 << 10;
/// Input blobs of a graph. Inputs and outputs together stay under the 253
/// descriptors that Linux passes in one message.
pub const INPUTS_MAX: usize = 64;
/// Bytes of a name (buffer, entry point, constant, output).
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of one buffer: what 32-bit indexed shaders can address.
pub const BUFFER_BYTES_MAX: u64 = 4 << 30;
/// Workgroups of one dimension: the limit that every WebGPU adapter has.
pub const WORKGROUPS_MAX: u32 = 65_535;
/// Dispatches of one execution, repeats included. At 50 µs a dispatch this
/// is most of a minute of pure overhead.
pub const DISPATCHES_MAX: u64 = 1_000_000;

/// Bytes of a WebAssembly module. Interpreters of large languages have 30 MiB.
pub const MODULE_BYTES_MAX: u64 = 64 << 20;
/// Functions of a module; those interpreters have some 20,000.
pub const FUNCTIONS_MAX: u32 = 100_000;
/// Bytes of one function's body. A compiler's time grows faster than they do;
/// the largest that people write, loops of interpreters, have some 100 KB.
pub const FUNCTION_BYTES_MAX: usize = 1 << 20;
/// Elements of all tables of an instance together, and items of all element
/// segments of a module. A table of functions has as many as the module has
/// functions; 16 bytes each.
pub const TABLE_ELEMENTS_MAX: usize = 1 << 20;
/// Tables of a module: compilers make one or two.
pub const TABLES_MAX: usize = 16;
/// Bytes of a command's memory: what 32-bit addresses reach, and its files.
pub const LINEAR_MEMORY_MAX: u64 = 8 << 30;
/// Bytes of stack of a running module; deep recursion traps here.
pub const WASM_STACK_BYTES: usize = 1 << 20;
/// Arguments of a command.
pub const ARGUMENTS_MAX: usize = 256;
/// Bytes of an argument or of a variable's value.
pub const ARGUMENT_BYTES_MAX: usize = 4096;
/// Environment variables of a command.
pub const VARIABLES_MAX: usize = 64;
/// Files of a command; the module and standard input are inputs as well.
pub const COMMAND_FILES_MAX: usize = INPUTS_MAX - 1;
/// Output files of a command; its two streams are outputs as well.
pub const COMMAND_OUTPUTS_MAX: usize = OUTPUTS_MAX - 2;
/// Bytes of a path in a command.
pub const PATH_BYTES_MAX: usize = 512;
/// Names in a path of a command.
pub const PATH_DEPTH_MAX: usize = 16;
/// Files and folders that a command may have at once.
pub const COMMAND_NODES_MAX: usize = 4096;
/// Files that a command may have open at once.
pub const COMMAND_OPEN_MAX: usize = 256;
/// A program that compiles longer is ended: its author can split it.
pub const COMPILE_TIME_MAX: Duration = Duration::from_secs(60);

/// Bytes of a frame from the parent: a spec and little else.
pub const REQUEST_FRAME_BYTES_MAX: usize = SPEC_BYTES_MAX + 4096;
/// Bytes of a frame from a worker: a shader message is the largest.
pub const REPLY_FRAME_BYTES_MAX: usize = 64 << 10;
/// Bytes of a failure's detail or a log line, cut by the worker.
pub const DETAIL_BYTES_MAX: usize = 16 << 10;
/// Log bytes kept of one execution; the rest is dropped and counted.
pub const LOG_BYTES_MAX: usize = 1 << 20;
/// Adapters that one probe reports.
pub const ADAPTERS_MAX: usize = 32;

/// Bytes of stack of a worker's first thread. The compiler recurses into nested
/// expressions; with this much any that people write, and all that [`NESTING_MAX`]
/// lets through, go through also in unoptimised builds.
pub const WORKER_STACK_BYTES: usize = 64 << 20;
/// Threads of a worker. A software driver starts no more than some three dozen,
/// however many processors there are; compilers and the runtime a few.
pub const WORKER_THREADS_MAX: u32 = 512;

/// Executions that wait for a worker. The node's holds bound them too.
pub const QUEUE_MAX: usize = 64;
/// Events that wait for the reader. Progress and logs are dropped when the
/// queue is full; the end of an execution waits.
pub const EVENTS_MAX: usize = 512;
/// Workers of a pool.
pub const POOL_MAX: usize = 64;
/// Device losses after which an adapter is quarantined.
pub const DEVICE_LOSSES_MAX: u32 = 3;
/// Failed starts in a row after which waiting executions are told so.
pub const START_FAILURES_MAX: u32 = 3;

/// A worker opens a device within this time; drivers' first start compiles.
pub const START_TIME_MAX: Duration = Duration::from_secs(30);
/// A shader check takes this long at most.
pub const CHECK_TIME_MAX: Duration = Duration::from_secs(10);
/// A measurement takes about a third of a second; slow machines get this.
pub const MEASURE_TIME_MAX: Duration = Duration::from_secs(30);
/// A killed worker is reaped within this time, else its adapter is
/// quarantined: a process that SIGKILL does not end hangs in a driver.
pub const REAP_TIME_MAX: Duration = Duration::from_secs(5);
/// After a cancel frame a worker has this long to stop between dispatches
/// before it is killed.
pub const CANCEL_GRACE: Duration = Duration::from_millis(200);

/// Entries of a model file's metadata. Models have some forty.
pub const GGUF_ENTRIES_MAX: u64 = 4096;
/// Tensors of a model file. The largest models have some two thousand.
pub const GGUF_TENSORS_MAX: u64 = 1 << 16;
/// Bytes of a name in a model file. Its format gives tensors 64.
pub const GGUF_KEY_BYTES_MAX: u64 = 256;
/// Bytes of a text in a model file. Templates of chats are the longest, with some
/// ten thousand.
pub const GGUF_TEXT_BYTES_MAX: u64 = 1 << 20;
/// Elements of an array in a model file. The merges of the largest vocabularies are
/// half a million.
pub const GGUF_ARRAY_ELEMENTS_MAX: u64 = 1 << 21;
/// Bytes that tensors are aligned to in a model file: a large page of the usual sizes.
/// What writes such files uses 32.
pub const GGUF_ALIGNMENT_MAX: u32 = 1 << 16;

/// Layers of a model. The largest of its family have 126.
pub const MODEL_LAYERS_MAX: usize = 256;
/// Numbers of a token within a model. The largest have 16,384 between layers, and
/// 53,248 in the middle of one.
pub const MODEL_WIDTH_MAX: usize = 1 << 17;
/// Heads of a model. The largest have 128.
pub const MODEL_HEADS_MAX: usize = 1024;
/// Numbers of a head. Models have 64 or 128.
pub const MODEL_HEAD_WIDTH_MAX: usize = 1024;
/// Tokens of a vocabulary. The largest have 262,144.
pub const MODEL_VOCABULARY_MAX: usize = 1 << 20;
/// Positions that a model was made for: ten million is the most that one claims.
pub const MODEL_CONTEXT_MAX: usize = 1 << 24;
/// Steps of one call of a model. More give no more speed, and take memory.
pub const MODEL_STEPS_MAX: usize = 512;
/// Numbers of an embedding: models have 384 to 4,096, and each must fit a frame.
pub const ENCODER_WIDTH_MAX: usize = 1 << 13;
/// Tokens of a text that becomes one embedding. Each looks at all others.
pub const ENCODER_CONTEXT_MAX: usize = 1 << 13;
/// Rows of one call of an encoder, unless one text has more: so few that whoever asks for
/// little does not wait long, and so many that all speed is there.
pub const ENCODER_ROWS_MAX: usize = 256;
/// Bytes of a text for each token that it may have. A word is cut into tokens or is one,
/// and words that are longer than this are none.
pub const ENCODER_TOKEN_BYTES_MAX: usize = 128;
/// Texts of one question for embeddings, as OpenAI has it.
pub const EMBED_INPUTS_MAX: usize = 2048;
/// Bytes of texts that are cut into tokens between two calls of an encoder.
pub const EMBED_READ_BYTES: usize = 64 << 10;
/// Threads of a model. Each product is shared among them; more than these only wait.
pub const MODEL_THREADS_MAX: usize = 64;
/// Control tokens of a vocabulary. The largest have a thousand; each is searched for in
/// a prompt.
pub const MODEL_CONTROLS_MAX: usize = 4096;
/// Bytes of a text that becomes tokens at once: some two million of them, which is more
/// than models were made for.
pub const MODEL_TEXT_BYTES_MAX: usize = 4 << 20;
/// Messages of a conversation.
pub const CHAT_MESSAGES_MAX: usize = 4096;
/// Bytes of a template for conversations. Those with tools have some ten thousand.
pub const CHAT_TEMPLATE_BYTES_MAX: usize = 256 << 10;
/// Steps of a template. The longest conversation takes some twenty for each message.
pub const CHAT_FUEL: u64 = 500_000;

/// Tokens of a text that is given as tokens, or of an answer that was begun elsewhere: as
/// long as most models go.
pub const BEGUN_TOKENS_MAX: usize = 1 << 16;
/// Bytes of a text in a question to a model: more than a question as it travels.
pub const ASK_TEXT_BYTES_MAX: usize = 2 << 20;
/// Messages of a question.
pub const TURNS_MAX: usize = CHAT_MESSAGES_MAX;
/// Texts before which an answer ends. The usual interface has four; some clients give more.
pub const STOPS_MAX: usize = 16;
/// Bytes of such a text: a line.
pub const STOP_BYTES_MAX: usize = 256;
/// Tokens whose likelihood a question shifts, as OpenAI has it.
pub const BIASES_MAX: usize = 300;
/// Likeliest tokens that are told beside each token, as OpenAI has it.
pub const LIKELIEST_MAX: usize = 20;
/// Bytes of a token that are told with its likelihood. Longer ones are names of control
/// tokens, or of no model.
pub const TOKEN_BYTES_MAX: usize = 256;
/// Calls of tools in one message of a conversation.
pub const TURN_CALLS_MAX: usize = 128;
/// Bytes of a tool's name, and of what a call of it is called.
pub const CALL_NAME_BYTES_MAX: usize = 64;
/// Pieces that become certain with one token: text, a call's name and its arguments, and
/// what follows them.
pub const PIECES_MAX: usize = 8;
/// Bytes of a piece: more than any token has, with what was held back.
pub const PIECE_BYTES_MAX: usize = 4 << 10;
/// Tokens that are scored in one call of a model: each takes logits of its own.
pub const SCORES_MAX: usize = 64;
/// Bytes of a question's schema, or of its tools. Most have one or two thousand; of this
/// many a schema that means ill takes a second.
pub const GRAMMAR_BYTES_MAX: usize = 64 << 10;
/// Bytes of the stack on which they are understood: a schema of that many bytes may refer on
/// three thousand times, and each takes twenty kilobytes. Only what is used is memory.
pub const GRAMMAR_STACK_BYTES: usize = 256 << 20;
/// What it may take to understand their regular expressions, in the measure of the crate
/// `llguidance`: some twenty milliseconds.
pub const GRAMMAR_FUEL: u64 = 1_000_000;
/// The same for a token: some ten milliseconds, in which all others wait,
pub const GRAMMAR_STEP_FUEL: u64 = 100_000;
/// and in items: some two.
pub const GRAMMAR_STEP_ITEMS_MAX: usize = 50_000;
/// States of a grammar's lexer, of one or two kilobytes each.
pub const GRAMMAR_LEXER_STATES_MAX: usize = 5_000;
/// Ways in which a grammar may go on at once.
pub const GRAMMAR_ITEMS_MAX: usize = 1_000;
/// Names of properties by patterns, in all of a schema: each is compared with all others.
pub const GRAMMAR_PATTERNS_MAX: usize = 16;
/// Answers of a form at once, in a model's worker: each may take some ten megabytes. Others
/// wait for their turn.
pub const FORMS_MAX: usize = 32;
/// A grammar that is not made within this time is given up.
pub const GRAMMAR_TIME_MAX: Duration = Duration::from_secs(10);
/// Threads that were given up with one, and have not ended: with more of them no answers of
/// a form are given.
pub const GRAMMAR_THREADS_MAX: usize = 2;
/// Bytes of a token, and of all of a vocabulary, where answers are to have forms: what the
/// crate `llguidance` can arrange.
pub const GRAMMAR_TOKEN_BYTES_MAX: usize = 1_000;
/// See [`GRAMMAR_TOKEN_BYTES_MAX`].
pub const GRAMMAR_VOCABULARY_BYTES_MAX: usize = 4_000_000;
/// Symbols of a grammar: four megabytes.
pub const GRAMMAR_SIZE_MAX: usize = 100_000;
/// Questions that a model's worker computes at once. More give hardly more speed, and each
/// is slower.
pub const ANSWERS_MAX: usize = 64;
/// Questions that wait for a turn in a model's worker: its parent gives no more.
pub const ASKS_MAX: usize = 4096;
/// Steps of prompts in one call while answers are written: so many hold them up by less
/// than a reader notices.
pub const PROMPT_STEPS_BESIDE: usize = 64;
/// A model is read within this time, from a slow disk.
pub const MODEL_LOAD_TIME_MAX: Duration = Duration::from_secs(600);
