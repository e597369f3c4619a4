//! Files of lines, compressed by their ending: `.gz`, `.zst`, or plain; `-` is a standard stream.

pub(crate) mod sniff;
mod zstd;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, PipeWriter, Read, Write};
use std::path::Path;
use std::thread::JoinHandle;

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::command::{for_shell, is_standard, quoted};
use crate::files::NewFile;
use sniff::{Kind, UTF8_MARK};

/// Bytes read or written at once.
const BUFFER: usize = 256 * 1024;

/// The longest line: a record of the largest key and two of the largest values as base64, with room to spare.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A file that can be read; nothing of it is read yet.
pub(super) struct In {
    source: Box<dyn BufRead + Send>,
    path: String,
    ending: Ending,
}

impl In {
    /// Opens a file.
    pub(super) fn open(file: &OsStr) -> io::Result<Self> {
        let path = file.to_string_lossy().into_owned();
        if is_standard(file) {
            let source = Box::new(BufReader::with_capacity(BUFFER, io::stdin()));
            return Ok(Self { source, path, ending: Ending::Plain });
        }
        let opened = File::open(file)?;
        if opened.metadata()?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder; name a file of records in it"));
        }
        let source = Box::new(BufReader::with_capacity(BUFFER, opened));
        Ok(Self { source, path, ending: ending(file) })
    }

    /// A file with this name and content.
    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn of(name: &str, content: Vec<u8>) -> Self {
        Self { source: Box::new(io::Cursor::new(content)), path: name.to_owned(), ending: ending(OsStr::new(name)) }
    }

    /// The lines, decompressed. Waits for the first bytes, and refuses a file whose content does not match its name.
    pub(super) fn lines(self) -> io::Result<Box<dyn BufRead + Send>> {
        let Self { mut source, path, ending } = self;
        let kind = Kind::of(source.fill_buf()?);
        let lines: Box<dyn BufRead + Send> = match (ending, kind) {
            (Ending::Plain, Kind::Text) => source,
            (Ending::Gzip, Kind::Gzip) => {
                let decoder = Gzip { inner: MultiGzDecoder::new(source) };
                Box::new(BufReader::with_capacity(BUFFER, decoder))
            }
            (Ending::Zstd, Kind::Zstd) => Box::new(BufReader::with_capacity(BUFFER, zstd::Frames::new(source))),
            (_, kind) => return Err(io::Error::other(misnamed(&path, ending, kind, &IMPORT))),
        };
        if ending == Ending::Plain { unmarked(lines) } else { unpacked(lines, &path) }
    }
}

/// Checks what is in a compressed file.
fn unpacked(mut lines: Box<dyn BufRead + Send>, path: &str) -> io::Result<Box<dyn BufRead + Send>> {
    let (what, unpack) = match Kind::of(lines.fill_buf()?) {
        Kind::Text => return unmarked(lines),
        Kind::Gzip => ("gzip data once more", "unpack it once and import the result"),
        Kind::Zstd => ("zstd data once more", "unpack it once and import the result"),
        Kind::Wide(name) => {
            let remedy = "only UTF-8 is read; unpack it and convert it with iconv -t UTF-8";
            return Err(io::Error::other(format!("{path} holds {name} text: {remedy}")));
        }
        Kind::Other(what, _) => (what, "unpack it and import the files in it"),
    };
    Err(io::Error::other(format!("{path} holds {what}: {unpack}")))
}

/// Text without the mark that some programs set in front of it.
fn unmarked(mut lines: Box<dyn BufRead + Send>) -> io::Result<Box<dyn BufRead + Send>> {
    skip_mark(&mut *lines)?;
    Ok(lines)
}

fn skip_mark(lines: &mut dyn BufRead) -> io::Result<()> {
    if lines.fill_buf()?.starts_with(UTF8_MARK) {
        lines.consume(UTF8_MARK.len());
    }
    Ok(())
}

/// Prepares a script for reading: a mark of UTF-8 is skipped.
///
/// # Errors
/// What it is, if it is no plain text, and what to do.
pub(crate) fn check_script(source: &mut dyn BufRead, path: &str) -> io::Result<()> {
    match Kind::of(source.fill_buf()?) {
        Kind::Text => skip_mark(source),
        kind => Err(io::Error::other(misnamed(path, Ending::Plain, kind, &SCRIPT))),
    }
}

/// Reads one line of bounded length, without its end; `false` at the end of the file.
pub(crate) fn read_line(source: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    let read = Read::take(source, LINE_BYTES_MAX).read_until(b'\n', line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if read as u64 == LINE_BYTES_MAX {
        return Err(io::Error::other(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
    }
    Ok(read > 0)
}

/// Who reads a file.
struct Reader {
    /// The command that reads it from a pipe.
    command: &'static str,
    /// It unpacks files by their names.
    unpacks: bool,
}

const IMPORT: Reader = Reader { command: "kv-tui exec import -", unpacks: true };
const SCRIPT: Reader = Reader { command: "kv-tui exec --file -", unpacks: false };

/// What a file is instead of what its name says, and what to do.
fn misnamed(path: &str, ending: Ending, kind: Kind, reader: &Reader) -> String {
    let piped = |command: &str| match path {
        "-" => format!("pipe it through {command}"),
        _ => format!("{command} {} | {}", for_shell(&quoted(path.as_bytes())), reader.command),
    };
    let packed = |name: &str, ending: &str, command: &str| match reader.unpacks && path != "-" {
        true => format!("it is {name}: let its name end in {ending}, or {}", piped(command)),
        false => format!("it is {name}: {}", piped(command)),
    };
    match kind {
        Kind::Text => {
            format!("it is plain text or empty, and not {}: name it without {}", ending.data(), ending.text())
        }
        Kind::Gzip => packed("gzip data", ".gz", "gzip -dc"),
        Kind::Zstd => packed("zstd data", ".zst", "zstd -dc"),
        Kind::Wide(name) => {
            format!("it is {name} text, and only UTF-8 is read: {}", piped(&format!("iconv -f {name} -t UTF-8")))
        }
        Kind::Other(what, unpack) => format!("it is {what}, which is not unpacked here: {}", piped(unpack)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Gzip,
    Zstd,
    Plain,
}

impl Ending {
    fn text(self) -> &'static str {
        match self {
            Self::Gzip => ".gz",
            Self::Zstd => ".zst",
            Self::Plain => "",
        }
    }

    fn data(self) -> &'static str {
        match self {
            Self::Gzip => "gzip data",
            Self::Zstd => "zstd data",
            Self::Plain => "text",
        }
    }
}

fn ending(file: &OsStr) -> Ending {
    match Path::new(file).extension().and_then(OsStr::to_str) {
        Some("gz") => Ending::Gzip,
        Some("zst") => Ending::Zstd,
        _ => Ending::Plain,
    }
}

/// All members of a gzip file. The decoder checks lengths and checksums; this says what it found in plain words.
struct Gzip<R> {
    inner: MultiGzDecoder<R>,
}

impl<R: Read> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::other("the gzip data is cut off, or something else follows it"),
            io::ErrorKind::InvalidInput if error.to_string().contains("header") => {
                io::Error::other("after the gzip data comes something else, or its header is damaged")
            }
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                io::Error::other(format!("the gzip data is damaged: {error}"))
            }
            _ => error,
        })
    }
}

/// A file being written. It gets its name by `finish`; dropped before, it is removed.
pub(super) struct Out {
    encoder: Encoder,
    file: NewFile,
}

enum Encoder {
    Plain(BufWriter<File>),
    Gzip(GzEncoder<BufWriter<File>>),
    /// The encoder pulls, so it has a thread of its own.
    Zstd(BufWriter<PipeWriter>, JoinHandle<io::Result<()>>),
}

impl Out {
    /// Begins a file that does not exist yet.
    pub(super) fn create(path: &OsStr) -> io::Result<Self> {
        let file = NewFile::create(Path::new(path))?;
        let buffered = BufWriter::with_capacity(BUFFER, file.file()?);
        let encoder = match ending(path) {
            Ending::Plain => Encoder::Plain(buffered),
            Ending::Gzip => Encoder::Gzip(GzEncoder::new(buffered, flate2::Compression::default())),
            Ending::Zstd => {
                let (reader, writer) = io::pipe()?;
                let reader = BufReader::with_capacity(BUFFER, reader);
                let compress = move || zstd::compress(reader, buffered);
                let encoding = std::thread::Builder::new().name("zstd".to_owned()).spawn(compress)?;
                Encoder::Zstd(BufWriter::with_capacity(BUFFER, writer), encoding)
            }
        };
        Ok(Self { encoder, file })
    }

    /// Writes one line.
    pub(super) fn line(&mut self, line: &str) -> io::Result<()> {
        let out: &mut dyn Write = match &mut self.encoder {
            Encoder::Plain(out) => out,
            Encoder::Gzip(out) => out,
            Encoder::Zstd(out, _) => out,
        };
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")
    }

    /// Writes what is buffered, makes the file durable, and gives it its name.
    pub(super) fn finish(self) -> io::Result<()> {
        match self.encoder {
            Encoder::Plain(mut out) => out.flush()?,
            Encoder::Gzip(out) => out.finish()?.flush()?,
            Encoder::Zstd(out, encoding) => {
                drop(out.into_inner().map_err(io::IntoInnerError::into_error)?);
                encoding.join().unwrap_or_else(|_| Err(io::Error::other("the encoder failed")))?;
            }
        }
        self.file.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["a.ndjson", "a.ndjson.gz", "a.ndjson.zst"];

    fn read(path: &Path) -> io::Result<Vec<String>> {
        In::open(path.as_os_str())?.lines()?.lines().collect()
    }

    #[test]
    fn every_ending_is_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in NAMES {
            let path = folder.path().join(name);
            let mut out = Out::create(path.as_os_str()).expect("created");
            for index in 0..20_000 {
                out.line(&format!("line {index} of {name}")).expect("written");
            }
            out.finish().expect("finished");
            let lines = read(&path).expect("readable");
            assert_eq!((lines.len(), lines[19_999].as_str()), (20_000, format!("line 19999 of {name}").as_str()));
            assert!(Out::create(path.as_os_str()).is_err(), "an existing file is not overwritten");
        }
        let sizes = NAMES.map(|name| std::fs::metadata(folder.path().join(name)).expect("there").len());
        assert!(sizes[1] * 2 < sizes[0] && sizes[2] * 2 < sizes[0], "{sizes:?}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), NAMES.len(), "nothing else is left");
    }

    #[test]
    fn a_file_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in NAMES {
            let mut out = Out::create(folder.path().join(name).as_os_str()).expect("created");
            out.line("a part").expect("written");
            drop(out);
            assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "{name}");
        }
    }

    fn packed(name: &str, content: &str) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        let mut out = Out::create(path.as_os_str()).expect("created");
        out.line(content).expect("written");
        out.finish().expect("finished");
        std::fs::read(path).expect("readable")
    }

    fn check(name: &str, content: &[u8], expected: Result<&[&str], &str>) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        match (read(&path), expected) {
            (Ok(lines), Ok(expected)) => assert_eq!(lines, expected, "{name}"),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{name}: {error}"),
            (read, expected) => panic!("{name}: {read:?} where {expected:?} was expected"),
        }
    }

    #[test]
    fn members_and_frames_follow_each_other_and_are_checked() {
        for (name, garbage) in [("a.gz", "after the gzip data comes"), ("a.zst", "after frame 2 comes")] {
            let both = [packed(name, "alpha"), packed(name, "beta")].concat();
            check(name, &both, Ok(&["alpha", "beta"]));
            check(name, &[&both[..], b"garbage, more than a header"].concat(), Err(garbage));
            for cut in 1..9 {
                check(name, &both[..both.len() - cut], Err("cut off"));
            }
            let mut damaged = both.clone();
            // The trailer of a gzip member is its checksum and its length, that of a zstd frame its checksum.
            let at = damaged.len() - if name == "a.gz" { 8 } else { 4 };
            damaged[at] ^= 1;
            check(name, &damaged, Err("checksum"));
        }
        let mut length = packed("a.gz", "alpha");
        let at = length.len() - 1;
        length[at] ^= 1;
        check("a.gz", &length, Err("damaged"));
    }

    #[test]
    fn what_is_misnamed_is_named() {
        check("a.gz", b"{\"key\":\"k\"}", Err("it is plain text or empty, and not gzip data: name it without .gz"));
        check("a.zst", b"", Err("it is plain text or empty, and not zstd data: name it without .zst"));
        check("a.zst", &packed("a.gz", "x"), Err("it is gzip data: let its name end in .gz"));
        check("a.ndjson", &packed("a.gz", "x"), Err("it is gzip data: let its name end in .gz, or gzip -dc "));
        check("a.ndjson", &packed("a.zst", "x"), Err("it is zstd data: let its name end in .zst, or zstd -dc "));
        check("a.ndjson", b"PK\x03\x04", Err("it is a zip archive, which is not unpacked here: unzip -p "));
        check(
            "a.ndjson",
            b"\xff\xfe{\0",
            Err("it is UTF-16LE text, and only UTF-8 is read: iconv -f UTF-16LE -t UTF-8 "),
        );
        check("a.gz", &packed("a.gz", "BZh9"), Err("holds bzip2 data: unpack it"));
        check("a.zst", &packed("a.zst", "{\0"), Err("holds UTF-16LE text: only UTF-8 is read"));
        check("a.ndjson", b"\xef\xbb\xbfalpha\nbeta\n", Ok(&["alpha", "beta"]));
        check("a.gz", &packed("a.gz", "\u{feff}alpha"), Ok(&["alpha"]));
        check("empty", b"", Ok(&[]));
        let folder = tempfile::tempdir().expect("a folder");
        let error = read(folder.path()).expect_err("a folder");
        assert!(error.to_string().contains("it is a folder"), "{error}");
    }
}
