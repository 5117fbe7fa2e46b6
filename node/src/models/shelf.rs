//! Models that are kept in the data directory: those of `suanli model add`.
//!
//! ```text
//! models/models.toml   entries, as in `[[provide.model]]`
//! models/HASH.gguf     files, by the BLAKE3 hash of what is in them
//! ```
//!
//! A file is put in its place whole, and then named in the list; it is taken out of the
//! list first, and then removed. So whatever is interrupted, each model of the list has
//! its file. The entries join those of the configuration when that is read.
//!
//! Absent: looking into a file (a worker's business), and a node that runs: it serves what
//! was there when it started.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use suanli_protocol::ids::BlobId;
use tempfile::TempDir;

use super::entry::ModelEntry;
use crate::data_dir::{DataDirError, write_private};

const LIST: &str = "models.toml";
const LOCK: &str = "lock";
/// A file on its way; what an interrupted copy left is written over.
const PART: &str = "part";
/// What folders are called in which packages are unpacked.
const STAGING: &str = "unpacking-";
/// Bytes of the list: thousands of entries.
const LIST_BYTES_MAX: u64 = 4 << 20;
/// Bytes that are copied at once.
const PIECE_BYTES: usize = 1 << 20;

/// Why something can't be done with the shelf.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// The list can't be written.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Reading or writing failed.
    #[error("{}: {source}; check that it is there, its permissions, and free space", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The list is none.
    #[error("{}: {message}; mend it, or move it away and add the models again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// There is one of that name.
    #[error("there is a model {0:?} already; remove it first, or give another name with --name")]
    Exists(String),
    /// There is none of that name.
    #[error("there is no model {0:?} here; `suanli model list` shows those that were added")]
    Missing(String),
}

/// The models of a data directory.
#[derive(Debug, Clone)]
pub struct Shelf {
    folder: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    model: Vec<ModelEntry>,
}

/// A file that lies in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Where.
    pub path: PathBuf,
    /// The hash of what is in it.
    pub hash: BlobId,
    /// How long it is.
    pub bytes: u64,
}

impl Shelf {
    /// That of a data directory. It need not be there yet.
    pub fn of(data_dir: &Path) -> Self {
        Self {
            folder: data_dir.join("models"),
        }
    }

    /// Its models, with their files' whole paths. None if nothing was ever added.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub fn entries(&self) -> Result<Vec<ModelEntry>, ShelfError> {
        let mut entries = self.list()?.model;
        for entry in &mut entries {
            entry.file = entry.file.take().map(|file| self.folder.join(file));
        }
        Ok(entries)
    }

    /// Whether an entry's file lies here.
    pub fn has(&self, entry: &ModelEntry) -> bool {
        let file = entry.file.as_deref();
        file.is_some_and(|file| file.parent() == Some(&self.folder))
    }

    /// Copies a file into its place.
    ///
    /// # Errors
    /// [`ShelfError::Io`].
    pub fn place(&self, source: &Path) -> Result<Placed, ShelfError> {
        let _lock = self.lock()?;
        let part = self.folder.join(PART);
        let placed = copy(source, &part).and_then(|(hash, bytes)| {
            let path = self.folder.join(name_of(hash));
            let renamed = fs::rename(&part, &path).and_then(|()| self.sync());
            renamed.map_err(|error| (path.clone(), error))?;
            Ok(Placed { path, hash, bytes })
        });
        placed.map_err(|(path, source)| {
            let _ = fs::remove_file(&part);
            ShelfError::Io { path, source }
        })
    }

    /// A folder for what is on its way to becoming a file of the shelf; it goes with all
    /// that is in it when this is dropped.
    ///
    /// # Errors
    /// [`ShelfError::Io`].
    pub fn staging(&self) -> Result<TempDir, ShelfError> {
        self.make()?;
        let made = tempfile::Builder::new()
            .prefix(STAGING)
            .tempdir_in(&self.folder);
        made.map_err(|source| ShelfError::Io {
            path: self.folder.clone(),
            source,
        })
    }

    /// Puts a model on the list, whose file lies in its place.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub fn add(&self, mut entry: ModelEntry, placed: &Placed) -> Result<(), ShelfError> {
        let _lock = self.lock()?;
        let mut list = self.list()?;
        if list.model.iter().any(|known| known.name == entry.name) {
            return Err(ShelfError::Exists(entry.name));
        }
        if !placed.path.is_file() {
            return Err(ShelfError::Io {
                path: placed.path.clone(),
                source: io::Error::new(io::ErrorKind::NotFound, "somebody removed it meanwhile"),
            });
        }
        entry.file = Some(name_of(placed.hash).into());
        list.model.push(entry);
        self.write(&list)
    }

    /// Takes a model off the list, and its file away if no other needs it.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub fn remove(&self, name: &str) -> Result<ModelEntry, ShelfError> {
        let missing = || ShelfError::Missing(name.to_owned());
        if !self.folder.is_dir() {
            return Err(missing());
        }
        let _lock = self.lock()?;
        let mut list = self.list()?;
        let place = list.model.iter().position(|entry| entry.name == name);
        let removed = list.model.remove(place.ok_or_else(missing)?);
        self.write(&list)?;
        if let Some(file) = &removed.file {
            self.forget(&list, file)?;
        }
        Ok(removed)
    }

    /// Removes a file that was placed and is not on the list.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub fn discard(&self, placed: &Placed) -> Result<(), ShelfError> {
        let _lock = self.lock()?;
        self.forget(&self.list()?, Path::new(&name_of(placed.hash)))
    }

    fn forget(&self, list: &List, file: &Path) -> Result<(), ShelfError> {
        let is_needed = |entry: &ModelEntry| entry.file.as_deref() == Some(file);
        let path = self.folder.join(file);
        if list.model.iter().any(is_needed) || !path.exists() {
            return Ok(());
        }
        let removed = fs::remove_file(&path);
        removed.map_err(|source| ShelfError::Io { path, source })
    }

    fn list(&self) -> Result<List, ShelfError> {
        let path = self.folder.join(LIST);
        let mut text = String::new();
        let read =
            File::open(&path).and_then(|file| file.take(LIST_BYTES_MAX).read_to_string(&mut text));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(List::default()),
            Err(source) => return Err(ShelfError::Io { path, source }),
            Ok(_) => {}
        }
        toml::from_str(&text).map_err(|error| ShelfError::Damaged {
            path,
            message: error.message().to_owned(),
        })
    }

    fn write(&self, list: &List) -> Result<(), ShelfError> {
        let path = self.folder.join(LIST);
        let text = toml::to_string(list).map_err(|error| ShelfError::Damaged {
            path: path.clone(),
            message: error.to_string(),
        })?;
        Ok(write_private(&path, text.as_bytes())?)
    }

    fn make(&self) -> Result<(), ShelfError> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder);
        made.map_err(|source| ShelfError::Io {
            path: self.folder.clone(),
            source,
        })
    }

    /// One at a time changes the list.
    fn lock(&self) -> Result<File, ShelfError> {
        self.make()?;
        let path = self.folder.join(LOCK);
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let locked = opened.and_then(|file| file.lock().map(|()| file));
        locked.map_err(|source| ShelfError::Io { path, source })
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

fn name_of(hash: BlobId) -> String {
    format!("{hash:#}.gguf")
}

/// Copies, and hashes on the way. Of a failure also where it was.
fn copy(source: &Path, target: &Path) -> Result<(BlobId, u64), (PathBuf, io::Error)> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    let mut from = File::open(source).map_err(at(source))?;
    let mut to = File::create(target).map_err(at(target))?;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut piece).map_err(at(source))?;
        if read == 0 {
            break;
        }
        hasher.update(&piece[..read]);
        to.write_all(&piece[..read]).map_err(at(target))?;
        bytes += u64::try_from(read).unwrap_or(u64::MAX);
    }
    to.sync_all().map_err(at(target))?;
    let hash = suanli_protocol::ids::Hash::from_bytes(*hasher.finalize().as_bytes());
    Ok((BlobId(hash), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> ModelEntry {
        toml::from_str(&format!(
            "name = \"{name}\"\nfile = \"x\"\nprice_in = \"1\"\nprice_out = \"2\""
        ))
        .unwrap()
    }

    #[test]
    fn models_are_added_listed_and_removed() {
        let folder = TempDir::new().unwrap();
        let shelf = Shelf::of(folder.path());
        assert_eq!(shelf.entries().unwrap(), []);
        assert!(matches!(shelf.remove("a"), Err(ShelfError::Missing(_))));
        let source = folder.path().join("source");
        fs::write(&source, "some model").unwrap();
        let placed = shelf.place(&source).unwrap();
        assert_eq!(placed.bytes, 10);
        assert_eq!(
            placed.hash,
            BlobId(suanli_protocol::ids::Hash::of(b"some model"))
        );
        for name in ["a", "b"] {
            shelf.add(entry(name), &placed).unwrap();
        }
        assert!(matches!(
            shelf.add(entry("a"), &placed),
            Err(ShelfError::Exists(_))
        ));
        let entries = shelf.entries().unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].file.as_ref(), Some(&placed.path));
        // The file stays while another needs it.
        shelf.remove("a").unwrap();
        assert_eq!(fs::read(&placed.path).unwrap(), b"some model");
        shelf.discard(&placed).unwrap();
        assert!(placed.path.exists());
        shelf.remove("b").unwrap();
        assert!(!placed.path.exists());
        assert_eq!(shelf.entries().unwrap(), []);
    }

    #[test]
    fn what_is_damaged_is_said_and_left_alone() {
        let folder = TempDir::new().unwrap();
        let shelf = Shelf::of(folder.path());
        let none = shelf.place(&folder.path().join("none")).unwrap_err();
        assert!(none.to_string().contains("none"), "{none}");
        let list = folder.path().join("models").join(LIST);
        fs::write(&list, "[[model]]\nname = 5").unwrap();
        assert!(matches!(shelf.entries(), Err(ShelfError::Damaged { .. })));
        assert!(matches!(shelf.remove("a"), Err(ShelfError::Damaged { .. })));
        assert_eq!(fs::read(&list).unwrap(), b"[[model]]\nname = 5");
    }
}
