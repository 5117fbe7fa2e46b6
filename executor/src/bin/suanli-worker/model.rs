//! Serves a model, for as long as its parent wants.
//!
//! The file comes as a descriptor and is read as memory; when the weights are arranged it
//! is let go. Orders are looked for between two steps, and waited for when nothing is
//! asked. Words are written at once: the parent always listens. What computes is the
//! processor, or the device that this worker was started for ([`device`]).
//!
//! Absent: who asks, and any limit on how many: the parent's.

mod device;
mod layout;
mod plan;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, OwnedFd};

use rustix::mm::{MapFlags, ProtFlags};
use suanli_executor::{
    ipc::{
        Confinement, Failure, IpcError, Reply, Request, Start, WorkerEnd,
        model::{Facts, Load, Order, Word},
    },
    model::{
        answers::{Answers, ReadError},
        embeddings::Embeddings,
        encoder::Encoder,
        engine::EngineError,
        gguf::Gguf,
    },
};

use self::device::Device;
use crate::{Fault, device::Gpu};

/// Reads the model, then answers until the parent ends it.
pub(crate) fn serve(
    start: &Start,
    confinement: Confinement,
    parent: &WorkerEnd,
) -> Result<(), IpcError> {
    let gpu = match start.adapter.map(Gpu::open).transpose() {
        Ok(gpu) => gpu,
        Err(fault) => return parent.send(&fault.into_reply()),
    };
    parent.send(&Reply::Ready {
        adapter: gpu.as_ref().map(|gpu| gpu.adapter().clone()),
        confinement,
    })?;
    let mut model = match load(parent.receive()?, gpu) {
        Ok(model) => model,
        Err(fault) => return parent.send(&fault.into_reply()),
    };
    say(parent, Word::Loaded(model.facts().clone()))?;
    loop {
        while model.is_idle() {
            hear(&mut model, parent)?;
        }
        // One at most: who is being answered waits for what it takes to understand it.
        if parent.has_word()? {
            hear(&mut model, parent)?;
        }
        let mut said = Ok(());
        let computed = model.step(|word| {
            if said.is_ok() {
                said = say(parent, word);
            }
        });
        said?;
        if let Err(error) = computed {
            let fault = Fault::new(Failure::DeviceLost, error.to_string());
            return parent.send(&fault.into_reply());
        }
    }
}

fn say(parent: &WorkerEnd, word: Word) -> Result<(), IpcError> {
    parent.send(&Reply::Model(word))
}

/// What is served: a model that writes, or one that makes vectors of texts.
enum Model {
    Writes(Box<Answers>),
    Embeds(Box<Embeddings>),
}

impl Model {
    /// What is in a file. An encoder is for the processor in any case.
    fn read(bytes: &[u8], load: &Load, gpu: Option<Gpu>) -> Result<Self, ReadError> {
        match Encoder::is_in(&Gguf::parse(bytes)?) {
            true => Embeddings::read(bytes, load).map(|model| Self::Embeds(Box::new(model))),
            false => answers(bytes, load, gpu).map(|model| Self::Writes(Box::new(model))),
        }
    }

    const fn facts(&self) -> &Facts {
        match self {
            Self::Writes(answers) => answers.facts(),
            Self::Embeds(embeddings) => embeddings.facts(),
        }
    }

    fn is_idle(&self) -> bool {
        match self {
            Self::Writes(answers) => answers.is_idle(),
            Self::Embeds(embeddings) => embeddings.is_idle(),
        }
    }

    fn step(&mut self, say: impl FnMut(Word)) -> Result<(), EngineError> {
        match self {
            Self::Writes(answers) => answers.step(say),
            Self::Embeds(embeddings) => {
                embeddings.step(say);
                Ok(())
            }
        }
    }

    /// None if it is no order for a model that is loaded.
    fn take(&mut self, order: Order, mut say: impl FnMut(Word)) -> Option<()> {
        match (self, order) {
            (Self::Writes(answers), Order::Ask { number, ask }) => answers.ask(number, &ask, say),
            (Self::Embeds(embeddings), Order::Embed { number, embed }) => {
                embeddings.embed(number, *embed, say);
            }
            (Self::Writes(answers), Order::Stop(number)) => answers.stop(number, say),
            (Self::Embeds(embeddings), Order::Stop(number)) => embeddings.stop(number, say),
            (Self::Writes(_), Order::Embed { number, .. }) => {
                say(Word::refused(
                    number,
                    &"this model writes text, and gives no embeddings",
                ));
            }
            (Self::Embeds(_), Order::Ask { number, .. }) => {
                say(Word::refused(
                    number,
                    &"this model gives embeddings, and writes no text",
                ));
            }
            (Self::Writes(_) | Self::Embeds(_), Order::Load(_)) => return None,
        }
        Some(())
    }
}

/// Takes one order.
fn hear(model: &mut Model, parent: &WorkerEnd) -> Result<(), IpcError> {
    let mut said = Vec::new();
    let Request::Model(order) = parent.receive()?.0 else {
        return Err(IpcError::Closed);
    };
    model
        .take(order, |word| said.push(word))
        .ok_or(IpcError::Closed)?;
    said.into_iter().try_for_each(|word| say(parent, word))
}

fn load((request, descriptors): (Request, Vec<OwnedFd>), gpu: Option<Gpu>) -> Result<Model, Fault> {
    let internal = |why: &str| Fault::new(Failure::Internal, why);
    let Request::Model(Order::Load(load)) = request else {
        return Err(internal("the order to load a model was expected"));
    };
    let file = descriptors.into_iter().next();
    let file = file.ok_or_else(|| internal("no file came"))?;
    let file = Mapped::new(&file)
        .map_err(|error| internal(&format!("the model's file can't be read: {error}")))?;
    Model::read(file.bytes(), &load, gpu)
        .map_err(|error| Fault::new(Failure::InvalidSpec, error.to_string()))
}

fn answers(bytes: &[u8], load: &Load, gpu: Option<Gpu>) -> Result<Answers, ReadError> {
    let Some(gpu) = gpu else {
        return Answers::read(bytes, load);
    };
    Answers::read_for(bytes, load, |model| {
        let device = Device::new(gpu, model, load.cache_bytes_max);
        let device = device.map_err(|fault| ReadError::Device(fault.into_detail()))?;
        Ok(Box::new(device))
    })
}

/// A file as memory.
struct Mapped {
    start: *mut std::ffi::c_void,
    length: usize,
}

impl Mapped {
    fn new(file: &impl AsFd) -> Result<Self, String> {
        let size = rustix::fs::fstat(file).map_err(|error| error.to_string())?;
        let length = usize::try_from(size.st_size).map_err(|error| error.to_string())?;
        if length == 0 {
            return Err("it is empty".to_owned());
        }
        // SAFETY: a new mapping, placed by the kernel, which nothing else knows.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                file,
                0,
            )
        };
        let start = start.map_err(|error| error.to_string())?;
        Ok(Self { start, length })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is this long, readable, and there until this is dropped. Who
        // owns the file, the operator, does not write into it meanwhile: a model's file is
        // put in its place whole. If he shortens it, this process ends, and no other.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped so, and nobody has a reference any more.
        let _ = unsafe { rustix::mm::munmap(self.start, self.length) };
    }
}
