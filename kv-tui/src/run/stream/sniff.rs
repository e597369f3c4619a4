//! What a file is by its first bytes, so that one of another kind gets a message that says so.

/// The mark with which some programs begin UTF-8. It means nothing (RFC 8259 lets readers of JSON ignore it).
pub(crate) const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";

/// Bytes from which on a tar archive says that it is one.
const TAR_MAGIC_AT: usize = 257;

/// What begins like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text, as far as can be seen.
    Text,
    /// Compressed with gzip.
    Gzip,
    /// Compressed with zstd.
    Zstd,
    /// Text of 16 or 32 bits a character; the name of its encoding.
    Wide(&'static str),
    /// Compressed or packed by something else: what, and the command that writes its content to a pipe.
    Other(&'static str, &'static str),
}

/// The signatures of formats that are not read.
const OTHERS: &[(&[u8], &str, &str)] = &[
    (b"PK\x03\x04", "a zip archive", "unzip -p"),
    (b"PK\x05\x06", "an empty zip archive", "unzip -p"),
    (b"\xfd7zXZ\0", "xz data", "xz -dc"),
    (b"BZh", "bzip2 data", "bzip2 -dc"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x -so"),
    (b"\x04\x22\x4d\x18", "lz4 data", "lz4 -dc"),
    (b"\x1f\x9d", "data of compress (.Z)", "zcat"),
    (b"LZIP", "lzip data", "lzip -dc"),
    (b"SQLite format 3\0", "an SQLite database", "sqlite3 -json"),
    (b"PAR1", "a Parquet file", "a program that writes it as NDJSON:"),
];

impl Kind {
    /// What begins with these bytes.
    pub(crate) fn of(start: &[u8]) -> Self {
        let skippable = matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
        if start.starts_with(b"\x1f\x8b") {
            return Self::Gzip;
        }
        if start.starts_with(&super::zstd::MAGIC) || skippable {
            return Self::Zstd;
        }
        if let Some((_, name, unpack)) = OTHERS.iter().find(|(magic, ..)| start.starts_with(magic)) {
            return Self::Other(name, unpack);
        }
        if start.get(TAR_MAGIC_AT..).is_some_and(|rest| rest.starts_with(b"ustar")) {
            return Self::Other("a tar archive", "tar -xOf");
        }
        match start {
            [0xff, 0xfe, 0, 0, ..] | [1..=0xff, 0, 0, 0, ..] => Self::Wide("UTF-32LE"),
            [0, 0, 0xfe, 0xff, ..] | [0, 0, 0, 1..=0xff, ..] => Self::Wide("UTF-32BE"),
            // Without a mark: a character of ASCII, of which the other half is 0.
            [0xff, 0xfe, ..] | [1..=0xff, 0, ..] => Self::Wide("UTF-16LE"),
            [0xfe, 0xff, ..] | [0, 1..=0xff, ..] => Self::Wide("UTF-16BE"),
            _ => Self::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell() {
        let mut tar = vec![b'x'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (start, expected) in [
            (&b"{\"key\":"[..], Kind::Text),
            (b"", Kind::Text),
            (b"\n", Kind::Text),
            ("강남".as_bytes(), Kind::Text),
            (b"\xef\xbb\xbf{", Kind::Text),
            (b"\x1f\x8b\x08", Kind::Gzip),
            (b"\x28\xb5\x2f\xfd", Kind::Zstd),
            (b"\x51\x2a\x4d\x18\x03", Kind::Zstd),
            (b"PK\x03\x04rest", Kind::Other("a zip archive", "unzip -p")),
            (b"BZh91AY", Kind::Other("bzip2 data", "bzip2 -dc")),
            (b"\xfd7zXZ\0", Kind::Other("xz data", "xz -dc")),
            (&tar, Kind::Other("a tar archive", "tar -xOf")),
            (b"\xff\xfe{\0", Kind::Wide("UTF-16LE")),
            (b"\xfe\xff\0{", Kind::Wide("UTF-16BE")),
            (b"{\0\"\0", Kind::Wide("UTF-16LE")),
            (b"\0{\0\"", Kind::Wide("UTF-16BE")),
            (b"\xff\xfe\0\0{\0\0\0", Kind::Wide("UTF-32LE")),
            (b"\0\0\0{", Kind::Wide("UTF-32BE")),
        ] {
            assert_eq!(Kind::of(start), expected, "{start:?}");
        }
    }
}
