//! A job's outputs: into files, as pictures, and as figures for a person.

use std::{
    fs::File,
    io::{BufWriter, Read as _},
    path::{Path, PathBuf},
};

use serde::Serialize;
use suanli_executor::{
    command::STDOUT,
    file::{OutputFile, PngSize, Show, ShowType},
};
use suanli_protocol::{ids::JobId, limits::INLINE_BYTES_MAX};

use super::follow::Followed;
use crate::{
    api::types::{JobInfo, OutputInfo, ReceiptInfo},
    cli::{
        exit::{Exit, Failure},
        screen::{list, rough, visible_lines},
    },
    client::{Client, ClientError, make_folder},
    jobfile::PreparedJob,
};

/// An output that is here.
#[derive(Debug, Serialize)]
pub(super) struct Written {
    name: String,
    /// Of the file that was written, if one was, else of the output.
    pub(super) bytes: u64,
    /// Where it was written, if the job file says so.
    pub(super) file: Option<PathBuf>,
    /// Its first number, if the job file says so.
    pub(super) shown: Option<Shown>,
    /// What the program printed, if it is text and goes nowhere else.
    pub(super) printed: Option<String>,
    /// Nobody asked for more of it.
    #[serde(skip)]
    is_stream: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub(super) label: String,
    value: f64,
    pub(super) text: String,
    /// The number itself,
    #[serde(skip)]
    pub(super) count: f64,
    /// and out of how many it is.
    #[serde(skip)]
    pub(super) of: Option<u64>,
}

/// Where outputs come from.
#[derive(Debug)]
pub(super) struct Source<'a> {
    /// Of which job.
    pub(super) job: JobId,
    /// What has them, for the API.
    pub(super) path: String,
    /// What it has.
    pub(super) outputs: &'a [OutputInfo],
    /// Of which unit: 0 if the job is no array.
    pub(super) unit: u32,
}

/// Whether an output stays where it was made: what is small comes here all the same.
pub(super) fn stays(job: &PreparedJob, output: &OutputInfo) -> bool {
    let is_small = usize::try_from(output.bytes).is_ok_and(|bytes| bytes <= INLINE_BYTES_MAX);
    job.staying.contains(&output.name) && !is_small
}

/// Brings all outputs that the job file wants.
pub(super) async fn write(
    client: &Client,
    job: &PreparedJob,
    source: &Source<'_>,
    out: &Path,
) -> Result<Vec<Written>, Failure> {
    let mut written = Vec::new();
    for wanted in &job.outputs {
        let here = source
            .outputs
            .iter()
            .find(|output| output.name == wanted.name);
        if here.is_some_and(|here| stays(job, here)) {
            continue;
        }
        let Some(here) = here else {
            let message = format!(
                "the provider returned no output `{}`; see `suanli job show {}`",
                wanted.name, source.job
            );
            return Err(Failure::new(Exit::NotVerified, message));
        };
        written.push(write_one(client, source, wanted, here, out).await?);
    }
    Ok(written)
}

/// Where it ran, what it cost, and what came out.
pub(super) fn text(
    info: &JobInfo,
    receipt: Option<&ReceiptInfo>,
    written: &[Written],
    followed: &Followed,
) -> String {
    let mut text = String::new();
    for output in written {
        if let Some(shown) = &output.shown {
            text.push_str(&list(&[(shown.label.as_str(), shown.text.clone())]));
        }
        if let Some(file) = &output.file {
            text.push_str(&format!(
                "wrote {} ({} bytes)\n",
                file.display(),
                output.bytes
            ));
        }
        if let Some(printed) = &output.printed {
            text.push_str(printed);
            text.push('\n');
        }
        if output.shown.is_none() && output.file.is_none() && !output.is_stream {
            text.push_str(&format!(
                "output `{}` has no `file` in the job file: `suanli job fetch {}` brings it\n",
                output.name, info.job
            ));
        }
    }
    let place = match (&info.provider, &info.region) {
        (Some(peer), Some(region)) => format!("{peer} in {region}"),
        (Some(peer), None) => peer.to_string(),
        (None, _) => "-".to_owned(),
    };
    let pay = if followed.settled {
        "settled"
    } else {
        "the provider has not acknowledged the payment yet"
    };
    let mut rows = vec![("ran at", place)];
    rows.extend(followed.wrong_rows());
    rows.extend([
        ("price", format!("{}, {pay}", info.spent)),
        ("took", rough(followed.took_ms)),
        ("job", format!("{:#}", info.job)),
    ]);
    rows.extend(receipt.map(|receipt| ("receipt", format!("{:#}", receipt.receipt))));
    text.push_str(&list(&rows));
    text
}

async fn write_one(
    client: &Client,
    source: &Source<'_>,
    wanted: &OutputFile,
    here: &OutputInfo,
    out: &Path,
) -> Result<Written, Failure> {
    let path = format!("{}/outputs/{}", source.path, wanted.name);
    let file = wanted.file(source.unit).map(|file| out.join(file));
    let mut bytes = here.bytes;
    let head = match (&file, wanted.png) {
        (Some(file), png) => {
            make_folder(file.parent().unwrap_or_else(|| Path::new(".")))?;
            client.download(&path, file).await?;
            let head = read_head(file)?;
            if let Some(size) = png {
                bytes = to_png(file, size)?;
            }
            head
        }
        (None, _) if wanted.show.is_some() => first_four(&client.bytes(&path).await?),
        (None, _) => None,
    };
    let prints = wanted.is_stream && wanted.name == STDOUT && file.is_none() && bytes > 0;
    let printed = if prints {
        let said = client.bytes(&path).await?;
        Some(visible_lines(&String::from_utf8_lossy(&said)))
    } else {
        None
    };
    Ok(Written {
        name: wanted.name.clone(),
        bytes,
        file,
        shown: wanted
            .show
            .as_ref()
            .zip(head)
            .map(|(show, head)| figure(show, head)),
        printed,
        is_stream: wanted.is_stream,
    })
}

fn read_head(file: &Path) -> Result<Option<[u8; 4]>, ClientError> {
    let mut head = Vec::new();
    let read = File::open(file).and_then(|opened| opened.take(4).read_to_end(&mut head));
    read.map_err(|source| ClientError::File {
        path: file.to_owned(),
        source,
    })?;
    Ok(first_four(&head))
}

fn first_four(bytes: &[u8]) -> Option<[u8; 4]> {
    bytes.first_chunk().copied()
}

/// Replaces raw pixels by the picture of them, and says how many bytes it has.
fn to_png(file: &Path, size: PngSize) -> Result<u64, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Unusable, format!("{}: {error}", file.display()))
    };
    let pixels = std::fs::read(file).map_err(|error| failed(&error))?;
    let out = File::create(file).map_err(|error| failed(&error))?;
    encode_png(BufWriter::new(out), size, &pixels).map_err(|error| failed(&error))?;
    let written = std::fs::metadata(file).map_err(|error| failed(&error))?;
    Ok(written.len())
}

fn encode_png(
    out: impl std::io::Write,
    size: PngSize,
    pixels: &[u8],
) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(out, size.width, size.height);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()
}

/// `accuracy 0.8440 (844 of 1000)`.
fn figure(show: &Show, head: [u8; 4]) -> Shown {
    let value = match show.kind {
        ShowType::U32 => f64::from(u32::from_le_bytes(head)),
        ShowType::I32 => f64::from(i32::from_le_bytes(head)),
        ShowType::F32 => f64::from(f32::from_le_bytes(head)),
    };
    // A count out of so many: u32 holds any that a job can count.
    let of = show.of.and_then(|of| u32::try_from(of).ok());
    let of = of.filter(|of| *of > 0);
    let text = of.map_or_else(|| value.to_string(), |of| part(value, u64::from(of)));
    Shown {
        label: show.label.clone(),
        value: of.map_or(value, |of| value / f64::from(of)),
        text,
        count: value,
        of: of.map(u64::from),
    }
}

/// A count out of so many, as a part and as it is.
pub(super) fn part(count: f64, of: u64) -> String {
    // Counts of 53 bits are exact, and no job counts further.
    #[expect(clippy::cast_precision_loss, reason = "as above")]
    let part = count / of as f64;
    format!("{part:.4} ({count} of {of})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(kind: ShowType, of: Option<u64>) -> Show {
        Show {
            label: "accuracy".into(),
            kind,
            of,
        }
    }

    #[test]
    fn figures_are_read_as_the_job_file_says() {
        let shown = figure(&show(ShowType::U32, Some(1000)), 844_u32.to_le_bytes());
        assert_eq!(shown.text, "0.8440 (844 of 1000)");
        let shown = figure(&show(ShowType::I32, None), (-3_i32).to_le_bytes());
        assert_eq!(shown.text, "-3");
        let shown = figure(&show(ShowType::F32, None), 0.5_f32.to_le_bytes());
        assert_eq!(shown.text, "0.5");
    }

    #[test]
    fn pixels_become_a_picture() {
        let size = PngSize {
            width: 2,
            height: 1,
        };
        let pixels = [255, 0, 0, 255, 0, 255, 0, 255];
        let mut file = Vec::new();
        encode_png(&mut file, size, &pixels).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(file))
            .read_info()
            .unwrap();
        let mut read = [0; 8];
        reader.next_frame(&mut read).unwrap();
        assert_eq!(read, pixels);
    }
}
