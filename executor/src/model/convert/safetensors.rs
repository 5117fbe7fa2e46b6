//! Reads safetensors: a head that says where tensors are, and their numbers.
//!
//! The head is JSON of a stated length. Before anything of it is used, it is checked that
//! the length is one that heads have, that each tensor has as many bytes as its type and
//! shape ask for, and that all of them lie one after the other, up to the end of the file.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
};

use half::{bf16, f16};
use serde::Deserialize;
use serde_json::Value;

use super::ConvertError;
use crate::limits::GGUF_TENSORS_MAX;

/// Bytes of a head: two hundred for each of as many tensors as models have.
const HEAD_BYTES_MAX: u64 = 16 << 20;
const METADATA: &str = "__metadata__";

/// The head of a file, checked.
#[derive(Debug)]
pub(super) struct Head {
    tensors: BTreeMap<String, Tensor>,
    /// Where the numbers begin.
    begin: u64,
}

#[derive(Debug, Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The numbers of a tensor.
#[derive(Debug)]
pub(super) enum Numbers {
    F32(Vec<u8>),
    F16(Vec<u8>),
    Bf16(Vec<u8>),
}

impl Numbers {
    pub(super) fn floats(&self) -> Box<dyn Iterator<Item = f32> + '_> {
        match self {
            Self::F32(bytes) => {
                Box::new(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)))
            }
            Self::F16(bytes) => {
                let pairs = bytes.as_chunks().0.iter();
                Box::new(pairs.map(|b| f16::from_le_bytes(*b).to_f32()))
            }
            Self::Bf16(bytes) => {
                let pairs = bytes.as_chunks().0.iter();
                Box::new(pairs.map(|b| bf16::from_le_bytes(*b).to_f32()))
            }
        }
    }
}

impl Head {
    pub(super) fn read(file: &mut (impl Read + Seek)) -> Result<Self, ConvertError> {
        let damaged = |why: String| ConvertError::Weights(why);
        let all = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        let mut length = [0; 8];
        file.read_exact(&mut length)
            .map_err(|_| damaged(format!("it has {all} bytes, which is no head")))?;
        let length = u64::from_le_bytes(length);
        if length > HEAD_BYTES_MAX.min(all - 8) {
            return Err(damaged(format!(
                "it says that its head has {length} bytes, and it has {all} in all (a head has {HEAD_BYTES_MAX} at most)"
            )));
        }
        let mut head = Vec::new();
        file.take(length).read_to_end(&mut head)?;
        let head: BTreeMap<String, Value> =
            serde_json::from_slice(&head).map_err(|error| damaged(format!("its head: {error}")))?;
        if u64::try_from(head.len()).is_ok_and(|count| count > GGUF_TENSORS_MAX) {
            return Err(damaged(format!("its head has {} entries", head.len())));
        }
        let mut tensors = BTreeMap::new();
        for (name, value) in head {
            if name != METADATA {
                let tensor: Tensor = serde_json::from_value(value)
                    .map_err(|error| damaged(format!("the tensor {name:?}: {error}")))?;
                tensors.insert(name, tensor);
            }
        }
        let begin = 8 + length;
        check(&tensors, all - begin).map_err(damaged)?;
        Ok(Self { tensors, begin })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor is there, with this shape, and of numbers.
    pub(super) fn check(&self, name: &str, wanted: &[u64]) -> Result<(), ConvertError> {
        let tensor = self.tensor(name)?;
        if tensor.shape != wanted {
            return Err(ConvertError::Shape {
                name: name.to_owned(),
                found: tensor.shape.clone(),
                wanted: wanted.to_vec(),
            });
        }
        match tensor.dtype.as_str() {
            "F32" | "F16" | "BF16" => Ok(()),
            kind => Err(ConvertError::Type {
                name: name.to_owned(),
                kind: kind.to_owned(),
            }),
        }
    }

    pub(super) fn numbers(
        &self,
        file: &mut (impl Read + Seek),
        name: &str,
    ) -> Result<Numbers, ConvertError> {
        let tensor = self.tensor(name)?;
        let [from, to] = tensor.data_offsets;
        file.seek(SeekFrom::Start(self.begin + from))?;
        let mut bytes = Vec::new();
        file.take(to - from).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()) != Ok(to - from) {
            return Err(ConvertError::Weights("it became shorter".to_owned()));
        }
        match tensor.dtype.as_str() {
            "F32" => Ok(Numbers::F32(bytes)),
            "F16" => Ok(Numbers::F16(bytes)),
            "BF16" => Ok(Numbers::Bf16(bytes)),
            kind => Err(ConvertError::Type {
                name: name.to_owned(),
                kind: kind.to_owned(),
            }),
        }
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, ConvertError> {
        let tensor = self.tensors.get(name);
        tensor.ok_or_else(|| ConvertError::NoTensor(name.to_owned()))
    }
}

/// Whether all tensors lie one after the other, in so many bytes.
fn check(tensors: &BTreeMap<String, Tensor>, room: u64) -> Result<(), String> {
    let mut places: Vec<([u64; 2], &str)> = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let [from, to] = tensor.data_offsets;
        let bytes = bytes_of(tensor).ok_or_else(|| {
            format!(
                "the tensor {name:?} is {:?} of {:?}, which can't be",
                tensor.shape, tensor.dtype
            )
        })?;
        if from.checked_add(bytes) != Some(to) || to > room {
            return Err(format!(
                "the tensor {name:?} needs {bytes} bytes, and lies from {from} to {to} of {room}"
            ));
        }
        places.push((tensor.data_offsets, name));
    }
    places.sort_unstable();
    let mut next = 0;
    for ([from, to], name) in places {
        if from != next {
            return Err(format!(
                "the tensor {name:?} begins at {from}, and the one before it ends at {next}"
            ));
        }
        next = to;
    }
    match next == room {
        true => Ok(()),
        false => Err(format!(
            "its tensors end at {next}, and there are {room} bytes"
        )),
    }
}

fn bytes_of(tensor: &Tensor) -> Option<u64> {
    let width = match tensor.dtype.as_str() {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "I8" | "U8" | "BOOL" => 1,
        _ => return None,
    };
    let sizes = tensor.shape.iter();
    sizes.copied().try_fold(width, u64::checked_mul)
}
