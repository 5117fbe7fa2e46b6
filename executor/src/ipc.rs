//! What a parent and its worker say to each other, and how.
//!
//! One Unix stream socket per worker, which the worker finds as its standard
//! input. A frame is a little-endian `u32` length and that many bytes of one
//! [`Request`] or [`Reply`] in the encoding of [`suanli_protocol::wire`]. Descriptors
//! (inputs, outputs, then state) ride on the first bytes of an [`Request::Execute`]
//! frame; a worker can pass none back: the parent reads without a control
//! buffer, so the kernel closes what comes.
//!
//! A worker is taken for hostile as soon as it has seen a job. The parent
//! bounds every frame before it allocates, and believes nothing that it can
//! find out itself (sizes, hashes, times).
//!
//! Absent: names of files. A worker never opens a path for a job.

pub mod model;

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use bincode::{Decode, Encode};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::retry_on_intr,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags,
    },
};
use suanli_protocol::{
    registry::{Feature, Runtime, SandboxLevel},
    wire::{self, List, Utf8, Wire, WireError},
};
use tokio::io::Interest;

use crate::limits::{
    ADAPTERS_MAX, CHECKPOINT_BUFFERS_MAX, DETAIL_BYTES_MAX, FEATURES_MAX, INPUTS_MAX,
    OUTPUT_MEMORY_MAX, OUTPUTS_MAX, REPLY_FRAME_BYTES_MAX, REQUEST_FRAME_BYTES_MAX, SPEC_BYTES_MAX,
};

/// Descriptors that one frame can carry.
pub const DESCRIPTORS_MAX: usize = INPUTS_MAX + OUTPUTS_MAX + CHECKPOINT_BUFFERS_MAX;

/// Utf8 that people read, cut to what a frame holds.
pub type Detail = Utf8<DETAIL_BYTES_MAX>;

/// What a parent says.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Request {
    /// First frame to every worker: what it is for and how far it may go.
    Start(Start),
    /// Run a program. `inputs`, `outputs`, then `state` descriptors come with the
    /// frame; outputs that are small for sure have none.
    Execute {
        /// What the spec is for.
        runtime: Runtime,
        /// An encoded [`crate::program::Program`].
        spec: List<u8, SPEC_BYTES_MAX>,
        /// How many of the descriptors are inputs.
        inputs: u32,
        /// How many are outputs.
        outputs: u32,
        /// How many are for the buffers of its checkpoints.
        state: u32,
        /// Dispatches that were done before, with what they left in the state; 0 for
        /// a program that begins.
        done: u64,
        /// Whether checkpoints are wanted.
        checkpoints: bool,
        /// Bytes of memory that it may take.
        memory_max: u64,
        /// Units of fuel that it may use, where its runtime counts them.
        fuel_max: u64,
    },
    /// Stop between two dispatches, or at a module's next tick.
    Cancel,
    /// There is room for a checkpoint: the state may be written, once.
    Room,
    /// Parse and validate a program; touch no device. The code of a module comes
    /// as a descriptor.
    Check {
        /// What the spec is for.
        runtime: Runtime,
        /// An encoded [`crate::program::Program`].
        spec: List<u8, SPEC_BYTES_MAX>,
    },
    /// To a worker that serves a model.
    Model(model::Order),
}

/// What a worker learns before it confines itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Start {
    /// Process id of the parent; a worker whose parent is another ends.
    pub parent: u32,
    /// Bytes of address space.
    pub address_space_max: u64,
    /// Bytes of memory that its control group may take, where there is one.
    pub memory_max: u64,
    /// Bytes of the largest file (an output) that it may write.
    pub file_bytes_max: u64,
    /// Seconds of processor time, for workers that only compile.
    pub cpu_s_max: Option<u64>,
    /// Which adapter to open or to measure, as [`Adapter::index`]; none for the
    /// processor alone. Other commands ignore it.
    pub adapter: Option<u32>,
}

/// [`OUTPUT_MEMORY_MAX`] as a length.
pub const OUTPUT_BYTES_INLINE: usize = 32 << 10;
const _: () = assert!(OUTPUT_BYTES_INLINE as u64 == OUTPUT_MEMORY_MAX);

/// Whether outputs of these sizes come in the worker's last frame.
pub fn are_sent_in_frame(mut sizes: impl Iterator<Item = u64>) -> bool {
    let sum = sizes.try_fold(0_u64, u64::checked_add);
    sum.is_some_and(|sum| sum <= OUTPUT_MEMORY_MAX)
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Reply {
    /// The device, if there is one, is open.
    Ready {
        /// What the worker runs on; none for the processor alone.
        adapter: Option<Adapter>,
        /// How far it is confined.
        confinement: Confinement,
    },
    /// Answer of `probe`.
    Adapters {
        /// All adapters that may serve.
        adapters: List<Adapter, ADAPTERS_MAX>,
        /// How far the probing worker was confined.
        confinement: Confinement,
    },
    /// Answer of `measure`, for an adapter.
    Measured(Measurement),
    /// Answer of `measure`, for the processor.
    Processor {
        /// Units of WebAssembly fuel per second, in one program.
        fuel_per_second: u64,
    },
    /// Answer of `check`: nothing to object to.
    Checked,
    /// What the execution is doing now: at first, and until it says otherwise,
    /// dispatching.
    Stage(Stage),
    /// Dispatches done, or fuel used.
    Progress {
        /// So many,
        done: u64,
        /// of so many.
        total: u64,
        /// What it took until now.
        used: Used,
    },
    /// The state is written as it is after so many dispatches. The next one waits
    /// for [`Request::Room`].
    Checkpoint {
        /// So many, those that were done before included.
        done: u64,
        /// What it took until now.
        used: Used,
    },
    /// A line for the job's log.
    Log {
        /// Without a line end.
        line: Detail,
    },
    /// The outputs are written, or here if they have
    /// [`OUTPUT_MEMORY_MAX`] bytes together at most.
    Finished {
        /// Bytes of each output.
        lengths: List<u64, OUTPUTS_MAX>,
        /// Small ones, one behind the other.
        outputs: List<u8, OUTPUT_BYTES_INLINE>,
        /// What it took.
        used: Used,
    },
    /// The end of an execution, a check, or the worker's start.
    Failed {
        /// Kind.
        failure: Failure,
        /// For people.
        detail: Detail,
        /// What it took until then.
        used: Used,
    },
    /// Of a worker that serves a model.
    Model(model::Word),
}

/// What an execution took, as its worker says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct Used {
    /// Microseconds during which the device was busy.
    pub gpu_us: u64,
    /// Microseconds of processor time of the whole worker.
    pub cpu_us: u64,
    /// Units of fuel.
    pub fuel: u64,
}

/// Where an execution is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Stage {
    /// Parsing, validating and compiling the source.
    Compiling,
    /// Filling buffers.
    Loading,
    /// Dispatching.
    Running,
    /// Reading outputs back.
    Collecting,
}

/// Why an execution did not finish.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum Failure {
    /// The graph is malformed, or does not fit its inputs.
    #[error("invalid job spec")]
    InvalidSpec,
    /// The source does not compile, or does not fit the passes.
    #[error("invalid shader")]
    InvalidShader,
    /// The module is not valid, or imports what is not offered.
    #[error("invalid module")]
    InvalidModule,
    /// The program broke a rule of its machine, such as the bounds of memory.
    #[error("trapped")]
    Trapped,
    /// It used all its fuel.
    #[error("out of fuel")]
    OutOfFuel,
    /// It ended by itself, and said that it failed.
    #[error("exit code {code}")]
    Exited {
        /// Not 0.
        code: u32,
    },
    /// It wrote more than it may.
    #[error("output too large")]
    OutputTooLarge,
    /// It did not write what it was to write.
    #[error("output missing")]
    OutputMissing,
    /// It asks for more than this machine or its agreement allows.
    #[error("too large: {asked} asked, {allowed} allowed")]
    TooLarge {
        /// Asked for.
        asked: u64,
        /// Allowed.
        allowed: u64,
    },
    /// The adapter lacks a feature that it names.
    #[error("missing feature")]
    MissingFeature,
    /// It ran past its time and was killed.
    #[error("deadline exceeded")]
    DeadlineExceeded,
    /// Somebody cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// The device has no more memory, or its worker reached its cap.
    #[error("out of memory")]
    OutOfMemory,
    /// The device went away.
    #[error("device lost")]
    DeviceLost,
    /// The worker died, or said something that no worker says.
    #[error("worker crashed")]
    WorkerCrashed,
    /// The adapter is out of service.
    #[error("adapter quarantined")]
    AdapterQuarantined,
    /// More executions wait than the queue holds.
    #[error("queue full")]
    QueueFull,
    /// The fault is here.
    #[error("internal error")]
    Internal,
    /// It made the worker try what its sandbox takes for an attack, and the
    /// kernel ended it.
    #[error("forbidden system call")]
    ForbiddenCall,
}

/// A device that can run jobs.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Adapter {
    /// Position among the adapters that a worker sees.
    pub index: u32,
    /// As the driver calls it.
    pub name: Utf8<128>,
    /// Driver and version.
    pub driver: Utf8<256>,
    /// PCI vendor id, or what the interface uses instead.
    pub vendor: u32,
    /// Where it is on the PCI bus; empty where that is not known.
    pub bus: Utf8<32>,
    /// Interface: `vulkan`, `metal`, `dx12`.
    pub backend: Utf8<16>,
    /// What it is.
    pub kind: AdapterKind,
    /// Bytes of device-local memory; main memory of a software adapter.
    pub memory_bytes: u64,
    /// Largest single buffer that a shader can bind.
    pub binding_bytes_max: u64,
    /// Largest single buffer.
    pub buffer_bytes_max: u64,
    /// What it can do of [`crate::spec::FEATURES`].
    pub features: List<Feature, FEATURES_MAX>,
}

impl Adapter {
    /// Whether a processor pretends to be a GPU here. Offered as `cpu`.
    #[must_use]
    pub const fn is_software(&self) -> bool {
        matches!(self.kind, AdapterKind::Software)
    }

    /// Whether it has all of these features.
    ///
    /// # Errors
    /// In words, with the first that it lacks.
    pub fn offers(&self, features: &[Feature]) -> Result<(), String> {
        let lacking = features
            .iter()
            .find(|feature| !self.features.contains(feature));
        match lacking {
            None => Ok(()),
            Some(feature) => Err(format!(
                "{} has no `{feature}`; choose a provider that offers it, or leave it out of the job's features",
                &*self.name
            )),
        }
    }
}

/// Kinds of adapter, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum AdapterKind {
    /// With memory of its own.
    Discrete,
    /// Shares main memory.
    Integrated,
    /// Passed through by a hypervisor.
    Virtual,
    /// The driver does not say.
    Other,
    /// Runs on the processor.
    Software,
}

/// What confinement a worker found in force, told before it saw any job.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Confinement {
    /// Layers held.
    pub held: List<Utf8<64>, 32>,
    /// Layers that failed, with the reason.
    pub missing: List<Utf8<256>, 32>,
    /// Environment variables left.
    pub environment: List<Utf8<64>, 32>,
    /// Descriptors open.
    pub descriptors: u32,
}

/// The layer that leaves a worker a network without a card.
pub const OWN_NAMESPACES: &str = "own network and IPC (namespaces)";
/// The layer that takes all files but the drivers' out of sight.
pub const EMPTY_ROOT: &str = "empty root but for drivers (mount namespace)";
/// The layer that takes root and its powers.
pub const NOT_ROOT: &str = "not root, no capabilities";
/// The layer that keeps a worker from all files but its drivers'.
pub const FILES_LOCKED: &str = "files locked (Landlock)";
/// The layer that keeps a worker from sockets, processes and most of the kernel.
pub const SYSTEM_CALLS_FILTERED: &str = "system calls filtered (seccomp)";
/// The layer that the parent adds: a control group. The version follows.
pub const CAPPED: &str = "memory and processes capped";

impl Confinement {
    /// The sandbox level that an offer may claim for it.
    #[must_use]
    pub fn level(&self) -> SandboxLevel {
        let holds = |layer: &str| self.held.iter().any(|held| held.starts_with(layer));
        if !(holds(FILES_LOCKED) && holds(SYSTEM_CALLS_FILTERED)) {
            SandboxLevel::PROCESS
        } else if holds(CAPPED) {
            SandboxLevel::CAPPED
        } else {
            SandboxLevel::CONFINED
        }
    }

    /// Adds what the parent knows of the worker's control group: its version, or
    /// why there is none.
    pub(crate) fn with_group(self, version: Result<u32, &str>) -> Self {
        let (mut held, mut missing) = (self.held.into_vec(), self.missing.into_vec());
        match version {
            Ok(version) => held.push(Utf8::cut(&format!("{CAPPED} (cgroup v{version})"))),
            Err(reason) => missing.push(Utf8::cut(&format!("{CAPPED}: {reason}"))),
        }
        Self {
            held: List::truncated(held),
            missing: List::truncated(missing),
            ..self
        }
    }
}

/// What `measure` found of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Measurement {
    /// The adapter measured.
    pub adapter: Adapter,
    /// FP32 operations per second (a multiplication and an addition are two).
    pub fp32_flops: u64,
    /// FP16 operations per second; 0 where the adapter has none.
    pub fp16_flops: u64,
    /// Bytes of device memory read and written per second.
    pub memory_bytes_per_second: u64,
    /// Bytes per second from the host to the device.
    pub upload_bytes_per_second: u64,
    /// Bytes per second from the device to the host.
    pub download_bytes_per_second: u64,
    /// Microseconds that all of it took.
    pub took_us: u64,
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// The other side is gone.
    #[error("the other side closed the connection")]
    Closed,
    /// A frame longer than its kind may be.
    #[error("a frame of {bytes} bytes, at most {max} are allowed")]
    FrameTooLong {
        /// Announced.
        bytes: usize,
        /// Allowed.
        max: usize,
    },
    /// A frame that is no message.
    #[error(transparent)]
    Codec(#[from] WireError),
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// A worker can't be put into its control group, and is told nothing.
    #[error("control group: {0}")]
    Group(io::Error),
}

/// The parent's end, asynchronous.
#[derive(Debug)]
pub(crate) struct ParentEnd {
    speaker: Speaker,
    received: Vec<u8>,
}

/// What a parent speaks through, while something else listens.
#[derive(Debug, Clone)]
pub(crate) struct Speaker(Arc<tokio::net::UnixStream>);

impl Speaker {
    /// Sends one frame, with descriptors on its first bytes. One speaks at a time.
    pub(crate) async fn send(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), IpcError> {
        let frame = frame(request, REQUEST_FRAME_BYTES_MAX)?;
        let mut rest = &frame[..];
        while !rest.is_empty() {
            self.0.writable().await?;
            // They go once, with the first bytes.
            let descriptors = if rest.len() == frame.len() {
                descriptors
            } else {
                &[]
            };
            let attempt = self.0.try_io(Interest::WRITABLE, || {
                Ok(send_with_descriptors(self.0.as_fd(), rest, descriptors)?)
            });
            match attempt {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => rest = rest.get(sent?..).unwrap_or_default(),
            }
        }
        Ok(())
    }
}

impl ParentEnd {
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixStream::from_std(socket)?;
        Ok(Self {
            speaker: Speaker(Arc::new(socket)),
            received: Vec::new(),
        })
    }

    pub(crate) const fn speaker(&self) -> &Speaker {
        &self.speaker
    }

    /// Sends one frame, with descriptors on its first bytes.
    pub(crate) async fn send(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), IpcError> {
        self.speaker.send(request, descriptors).await
    }

    /// The next frame. Safe to drop and call again: nothing is lost.
    pub(crate) async fn receive(&mut self) -> Result<Reply, IpcError> {
        loop {
            if let Some(reply) = take_reply(&mut self.received)? {
                return Ok(reply);
            }
            self.speaker.0.readable().await?;
            match self.speaker.0.try_read_buf(&mut self.received) {
                Ok(0) => return Err(IpcError::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Takes the first frame out of what a worker has said, once all of it is there.
///
/// # Errors
/// If the frame is too long, which its first four bytes say, or no [`Reply`].
pub fn take_reply(received: &mut Vec<u8>) -> Result<Option<Reply>, IpcError> {
    let Some(header) = received.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = frame_length(*header, REPLY_FRAME_BYTES_MAX)?;
    let Some(body) = received.get(4..4 + length) else {
        return Ok(None);
    };
    let reply = wire::decode(body, REPLY_FRAME_BYTES_MAX)?;
    received.drain(..4 + length);
    Ok(Some(reply))
}

/// The worker's end, blocking.
#[derive(Debug)]
pub struct WorkerEnd {
    socket: UnixStream,
}

impl WorkerEnd {
    /// Takes over the socket that the parent left as standard input.
    ///
    /// # Errors
    /// If standard input is no socket.
    pub fn from_stdin() -> io::Result<Self> {
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        rustix::net::sockopt::socket_type(&socket)?;
        Ok(Self::new(socket.into()))
    }

    /// Talks over this socket.
    #[must_use]
    pub const fn new(socket: UnixStream) -> Self {
        Self { socket }
    }

    /// A second handle, for a last word when the first is busy.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
        })
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// If the parent is gone.
    pub fn send(&self, reply: &Reply) -> Result<(), IpcError> {
        let frame = frame(reply, REPLY_FRAME_BYTES_MAX)?;
        Ok((&self.socket).write_all(&frame)?)
    }

    /// Waits for the next frame and its descriptors.
    ///
    /// # Errors
    /// If the parent is gone, or talks nonsense.
    pub fn receive(&self) -> Result<(Request, Vec<OwnedFd>), IpcError> {
        let mut header = [0; 4];
        let (read, descriptors) = receive_descriptors(self.socket.as_fd(), &mut header)?;
        (&self.socket).read_exact(&mut header[read..])?;
        let length = frame_length(header, REQUEST_FRAME_BYTES_MAX)?;
        let mut body = vec![0; length];
        (&self.socket).read_exact(&mut body)?;
        Ok((wire::decode(&body, REQUEST_FRAME_BYTES_MAX)?, descriptors))
    }

    /// Whether a frame (or the end) waits to be read.
    ///
    /// # Errors
    /// If the socket is broken.
    pub fn has_word(&self) -> Result<bool, IpcError> {
        let mut sockets = [PollFd::new(&self.socket, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let ready = rustix::event::poll(&mut sockets, Some(&at_once)).map_err(io::Error::from)?;
        Ok(ready > 0)
    }
}

fn frame<T: Wire>(message: &T, max: usize) -> Result<Vec<u8>, IpcError> {
    let body = wire::encode(message);
    let too_long = || IpcError::FrameTooLong {
        bytes: body.len(),
        max,
    };
    if body.len() > max {
        return Err(too_long());
    }
    let length = u32::try_from(body.len()).map_err(|_| too_long())?;
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

fn frame_length(header: [u8; 4], max: usize) -> Result<usize, IpcError> {
    let bytes = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if bytes > max {
        return Err(IpcError::FrameTooLong { bytes, max });
    }
    Ok(bytes)
}

fn send_with_descriptors(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(rustix::io::Errno::NOBUFS);
    }
    retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })
}

fn receive_descriptors(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), IpcError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut *into)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .map_err(io::Error::from)?;
    if message.bytes == 0 {
        return Err(IpcError::Closed);
    }
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    Ok((message.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (ParentEnd, WorkerEnd) {
        let (parent, worker) = UnixStream::pair().unwrap();
        (ParentEnd::new(parent).unwrap(), WorkerEnd::new(worker))
    }

    fn progress() -> Reply {
        Reply::Progress {
            done: 1,
            total: 2,
            used: Used::default(),
        }
    }

    #[tokio::test]
    async fn descriptors_arrive_with_their_frame() {
        let (mut parent, worker) = pair();
        let file = tempfile::tempfile().unwrap();
        let request = Request::Execute {
            runtime: Runtime::WGSL,
            spec: vec![7; 3_000].try_into().unwrap(),
            inputs: 1,
            outputs: 1,
            state: 0,
            done: 0,
            checkpoints: false,
            memory_max: 5,
            fuel_max: 0,
        };
        parent
            .send(&request, &[file.as_fd(), file.as_fd()])
            .await
            .unwrap();
        parent.send(&Request::Cancel, &[]).await.unwrap();
        let (received, descriptors) = worker.receive().unwrap();
        assert_eq!((received, descriptors.len()), (request, 2));
        assert!(worker.has_word().unwrap());
        assert_eq!(worker.receive().unwrap().0, Request::Cancel);
        assert!(!worker.has_word().unwrap());
    }

    #[tokio::test]
    async fn abuse_22_a_huge_frame_is_refused_by_its_header() {
        let (mut parent, mut worker) = pair();
        worker.socket.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(
            parent.receive().await,
            Err(IpcError::FrameTooLong { .. })
        ));
    }

    #[tokio::test]
    async fn garbage_in_a_frame_is_refused() {
        let (mut parent, mut worker) = pair();
        worker
            .socket
            .write_all(&[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])
            .unwrap();
        assert!(matches!(parent.receive().await, Err(IpcError::Codec(_))));
    }

    #[tokio::test]
    async fn frames_in_pieces_are_put_together() {
        let (mut parent, mut worker) = pair();
        let bytes = frame(&progress(), 64).unwrap();
        let (head, tail) = bytes.split_at(5);
        worker.socket.write_all(head).unwrap();
        let early = tokio::time::timeout(std::time::Duration::from_millis(5), parent.receive());
        assert!(early.await.is_err());
        worker.socket.write_all(tail).unwrap();
        assert_eq!(parent.receive().await.unwrap(), progress());
    }
}
