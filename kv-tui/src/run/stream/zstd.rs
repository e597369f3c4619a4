//! Zstandard with all the checks of the format (RFC 8878): frames one behind the other, skippable frames, the size that
//! a frame's header promises, the checksum of its content, and nothing behind the last frame.

use std::io::{self, Cursor, Read, Write};

use ruzstd::decoding::errors::FrameDecoderError;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// How a frame begins, in the order of the file.
pub(super) const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Reads all frames of a file.
pub(super) struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    /// The frame being read: the size of its content as its header promises it, and what was read of it.
    frame: Option<(Option<u64>, u64)>,
    /// Frames read, skippable ones included.
    frames: u64,
}

impl<R: Read> Frames<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), frame: None, frames: 0 }
    }

    /// Reads the head of the next frame; `false` at the end of the file.
    fn begin(&mut self) -> io::Result<bool> {
        let mut magic = [0; 4];
        let read = fill(&mut self.source, &mut magic)?;
        if read == 0 && self.frames > 0 {
            return Ok(false);
        }
        let number = u32::from_le_bytes(magic);
        if read == magic.len() && (0x184d_2a50..=0x184d_2a5f).contains(&number) {
            self.skip()?;
        } else if read == magic.len() && magic == MAGIC {
            self.open()?;
        } else if self.frames == 0 {
            return Err(io::Error::other("it is not zstd data"));
        } else {
            return Err(io::Error::other(format!("after frame {} comes something that is not zstd data", self.frames)));
        }
        self.frames += 1;
        Ok(true)
    }

    fn skip(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        let whole = fill(&mut self.source, &mut length)? == length.len();
        let length = u64::from(u32::from_le_bytes(length));
        let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
        if whole && skipped == length { Ok(()) } else { Err(cut_off()) }
    }

    fn open(&mut self) -> io::Result<()> {
        let mut descriptor = [0; 1];
        if fill(&mut self.source, &mut descriptor)? == 0 {
            return Err(cut_off());
        }
        // The decoder gives 0 for a size of 0 and for an absent one. The descriptor distinguishes them: a size is
        // present unless both its flag (two bits) and the bit of a single segment are clear.
        let stated = descriptor[0] & 0b1110_0000 != 0;
        let head = Cursor::new([&MAGIC[..], &descriptor].concat());
        self.decoder.init(head.chain(&mut self.source)).map_err(explained)?;
        self.frame = Some((stated.then(|| self.decoder.content_size()), 0));
        Ok(())
    }

    /// Compares a frame that has ended with what it says of itself.
    fn check(&self, promised: Option<u64>, read: u64) -> io::Result<()> {
        if let Some(promised) = promised.filter(|promised| *promised != read) {
            let frame = self.frames;
            return Err(io::Error::other(format!(
                "frame {frame} holds {read} bytes, and says that it holds {promised}"
            )));
        }
        let stated = self.decoder.get_checksum_from_data();
        if stated.is_some() && stated != self.decoder.get_calculated_checksum() {
            return Err(io::Error::other(format!(
                "the checksum of frame {} does not match: it is damaged",
                self.frames
            )));
        }
        Ok(())
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let Some((promised, before)) = self.frame else {
                if self.begin()? {
                    continue;
                }
                return Ok(0);
            };
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(explained)?;
            }
            let read = self.decoder.read(buffer)?;
            let sum = before + read as u64;
            if read > 0 {
                self.frame = Some((promised, sum));
                return Ok(read);
            }
            self.check(promised, sum)?;
            self.frame = None;
        }
    }
}

/// Reads until the buffer is full or the source ends; how much it is.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn cut_off() -> io::Error {
    io::Error::other("the zstd data ends in the middle of a frame: the file is cut off")
}

fn explained(error: FrameDecoderError) -> io::Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if inner.downcast_ref::<io::Error>().is_some_and(|inner| inner.kind() == io::ErrorKind::UnexpectedEof) {
            return cut_off();
        }
        cause = inner.source();
    }
    match error {
        FrameDecoderError::WindowSizeTooBig { requested, max } => io::Error::other(format!(
            "it was compressed with a window of {requested} bytes, {max} are allowed; compress it without --long or --ultra"
        )),
        error => io::Error::other(format!("the zstd data is damaged: {error}")),
    }
}

/// Compresses what `source` gives into `drain` as one frame. The encoder panics where either fails, so each is asked in
/// its place and what went wrong is reported afterwards.
pub(super) fn compress(source: impl Read, drain: impl Write) -> io::Result<()> {
    use ruzstd::encoding::{CompressionLevel, FrameCompressor};

    let mut compressor = FrameCompressor::new(CompressionLevel::Fastest);
    compressor.set_source(Careful { inner: source, failed: None });
    compressor.set_drain(Careful { inner: drain, failed: None });
    compressor.compress();
    let failed = compressor.take_source().and_then(|source| source.failed);
    let drain = compressor.take_drain().ok_or_else(|| io::Error::other("the encoder lost its output"))?;
    match failed.or(drain.failed) {
        Some(error) => Err(error),
        None => { drain.inner }.flush(),
    }
}

/// Remembers the first failure. From then on nothing is read, and what is written goes nowhere.
struct Careful<T> {
    inner: T,
    failed: Option<io::Error>,
}

impl<T> Careful<T> {
    fn keep<V>(&mut self, done: io::Result<V>, otherwise: V) -> io::Result<V> {
        match done {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.failed = Some(error);
                Ok(otherwise)
            }
            done => done,
        }
    }
}

impl<R: Read> Read for Careful<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failed.is_some() {
            return Ok(0);
        }
        let read = fill(&mut self.inner, buffer);
        self.keep(read, 0)
    }
}

impl<W: Write> Write for Careful<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed.is_some() {
            return Ok(bytes.len());
        }
        let written = self.inner.write(bytes);
        self.keep(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(content: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        compress(content, &mut frame).expect("compressed");
        frame
    }

    /// A frame of one raw block whose header has the size of its content, without a checksum (RFC 8878, 3.1.1).
    fn sized(content: &[u8], stated: u8) -> Vec<u8> {
        let length = u8::try_from(content.len()).expect("short");
        [&MAGIC[..], &[0b0010_0000, stated, (length << 3) | 1, length >> 5, 0], content].concat()
    }

    fn check(file: &[u8], expected: Result<&[u8], &str>) {
        let mut content = Vec::new();
        let read = Frames::new(file).read_to_end(&mut content);
        match (read, expected) {
            (Ok(_), Ok(expected)) => assert_eq!(content, expected),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (read, expected) => panic!("{read:?} where {expected:?} was expected"),
        }
    }

    #[test]
    fn all_frames_are_read_and_checked() {
        let (a, b) = (frame(b"alpha\n"), frame(b"beta\n"));
        let skippable = [&0x184d_2a53_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"any"].concat();
        check(&a, Ok(b"alpha\n"));
        check(&[&a[..], &b].concat(), Ok(b"alpha\nbeta\n"));
        check(&[&skippable[..], &a, &skippable, &b, &skippable].concat(), Ok(b"alpha\nbeta\n"));
        check(&frame(b""), Ok(b""));
        check(&skippable, Ok(b""));
        check(b"", Err("it is not zstd data"));
        check(&[&a[..], b"garbage"].concat(), Err("after frame 1 comes something that is not zstd data"));
        check(&[&a[..], b"\0"].concat(), Err("after frame 1 comes something"));
        check(&skippable[..9], Err("cut off"));
        check(&skippable[..6], Err("cut off"));
        check(&sized(b"five!", 5), Ok(b"five!"));
        check(&sized(b"five!", 6), Err("frame 1 holds 5 bytes, and says that it holds 6"));
        check(&sized(b"five!", 0), Err("damaged"));
    }

    #[test]
    fn no_cut_and_no_flipped_bit_passes() {
        let content: Vec<u8> =
            (0..20_000_u32).flat_map(|number| number.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
        let whole = frame(&content);
        for length in (1..whole.len()).step_by(whole.len() / 40).chain([whole.len() - 4, whole.len() - 1]) {
            let read = Frames::new(&whole[..length]).read_to_end(&mut Vec::new());
            assert!(read.is_err(), "the first {length} bytes of {}", whole.len());
        }
        for at in (0..whole.len()).step_by(whole.len() / 40).chain([whole.len() - 1]) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            let mut read = Vec::new();
            let done = Frames::new(&damaged[..]).read_to_end(&mut read);
            assert!(done.is_err() || read == content, "byte {at}");
        }
    }

    #[test]
    fn a_full_disk_is_an_error_and_no_panic() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = compress(&b"content"[..], Full).expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
