//! Files of lines, compressed by their ending: `.gz`, `.zst`, or plain; `-` is a standard stream.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, PipeWriter, Write};
use std::path::Path;
use std::thread::JoinHandle;

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, FrameCompressor};

use crate::command::is_standard;

/// Bytes read or written at once.
const BUFFER: usize = 256 * 1024;

/// Opens a file for reading.
pub(super) fn open(file: &OsStr) -> io::Result<Box<dyn BufRead + Send>> {
    if is_standard(file) {
        return Ok(Box::new(BufReader::with_capacity(BUFFER, io::stdin())));
    }
    let plain = BufReader::with_capacity(BUFFER, File::open(file)?);
    Ok(match ending(file) {
        Ending::Gzip => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(plain))),
        Ending::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(plain).map_err(io::Error::other)?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
        Ending::Plain => Box::new(plain),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Gzip,
    Zstd,
    Plain,
}

fn ending(file: &OsStr) -> Ending {
    match Path::new(file).extension().and_then(OsStr::to_str) {
        Some("gz") => Ending::Gzip,
        Some("zst") => Ending::Zstd,
        _ => Ending::Plain,
    }
}

/// A file being written. Only `finish` makes it complete.
pub(super) enum Out {
    Plain(BufWriter<File>),
    Gzip(GzEncoder<BufWriter<File>>),
    /// The encoder pulls, so it has a thread of its own.
    Zstd(BufWriter<PipeWriter>, JoinHandle<io::Result<File>>),
}

impl Out {
    /// Creates a file that does not exist yet.
    pub(super) fn create(file: &OsStr) -> io::Result<Self> {
        let created = OpenOptions::new().write(true).create_new(true).open(file)?;
        Ok(match ending(file) {
            Ending::Plain => Self::Plain(BufWriter::with_capacity(BUFFER, created)),
            Ending::Gzip => {
                Self::Gzip(GzEncoder::new(BufWriter::with_capacity(BUFFER, created), flate2::Compression::default()))
            }
            Ending::Zstd => {
                let (reader, writer) = io::pipe()?;
                let encoder = std::thread::Builder::new().name("zstd".to_owned()).spawn(move || {
                    let mut compressor = FrameCompressor::new(CompressionLevel::Fastest);
                    compressor.set_source(BufReader::with_capacity(BUFFER, reader));
                    compressor.set_drain(BufWriter::with_capacity(BUFFER, created));
                    compressor.compress();
                    let out = compressor.take_drain().ok_or_else(|| io::Error::other("the encoder lost its output"))?;
                    out.into_inner().map_err(io::IntoInnerError::into_error)
                })?;
                Self::Zstd(BufWriter::with_capacity(BUFFER, writer), encoder)
            }
        })
    }

    /// Writes one line.
    pub(super) fn line(&mut self, line: &str) -> io::Result<()> {
        let out: &mut dyn Write = match self {
            Self::Plain(out) => out,
            Self::Gzip(out) => out,
            Self::Zstd(out, _) => out,
        };
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")
    }

    /// Writes what is buffered, and makes the file durable.
    pub(super) fn finish(self) -> io::Result<()> {
        let buffered = match self {
            Self::Plain(out) => out,
            Self::Gzip(out) => out.finish()?,
            Self::Zstd(out, encoder) => {
                drop(out.into_inner().map_err(io::IntoInnerError::into_error)?);
                let file = encoder.join().unwrap_or_else(|_| Err(io::Error::other("the encoder failed")))?;
                return file.sync_all();
            }
        };
        buffered.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_is_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["a.ndjson", "a.ndjson.gz", "a.ndjson.zst"] {
            let path = folder.path().join(name);
            let mut out = Out::create(path.as_os_str()).expect("created");
            for index in 0..20_000 {
                out.line(&format!("line {index} of {name}")).expect("written");
            }
            out.finish().expect("finished");
            let lines: Vec<String> =
                open(path.as_os_str()).expect("opened").lines().map(|line| line.expect("a line")).collect();
            assert_eq!((lines.len(), lines[19_999].as_str()), (20_000, format!("line 19999 of {name}").as_str()));
            assert!(Out::create(path.as_os_str()).is_err(), "an existing file is not overwritten");
        }
        let sizes = ["a.ndjson", "a.ndjson.gz", "a.ndjson.zst"]
            .map(|name| std::fs::metadata(folder.path().join(name)).expect("there").len());
        assert!(sizes[1] * 2 < sizes[0] && sizes[2] * 2 < sizes[0], "{sizes:?}");
    }

    #[test]
    fn garbage_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["a.gz", "a.zst"] {
            let path = folder.path().join(name);
            std::fs::write(&path, b"this is not compressed").expect("written");
            let read = open(path.as_os_str()).and_then(|mut file| file.read_line(&mut String::new()));
            assert!(read.is_err(), "{name}");
        }
    }
}
