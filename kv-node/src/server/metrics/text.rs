//! The two text formats of metrics, and which of them an asker wants.

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus, which every collector reads.
    Prometheus,
}

impl Format {
    pub(super) const fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// OpenMetrics for who asks for it and likes nothing of the other better; the older format for everybody else.
    pub(super) fn preferred(accept: &str) -> Self {
        let quality = |wanted: &str| {
            let of = |range: &str| {
                let mut parts = range.split(';').map(str::trim);
                let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(wanted));
                let quality = parts.find_map(|part| part.strip_prefix("q=")?.trim().parse::<f32>().ok());
                named.then_some(quality.unwrap_or(1.0))
            };
            accept.split(',').filter_map(of).fold(0.0, f32::max)
        };
        let open = quality("application/openmetrics-text");
        if open > 0.0 && open >= quality("text/plain") { Self::OpenMetrics } else { Self::Prometheus }
    }
}

/// The same metrics in the format 0.0.4. There a counter has its whole name, `_total` included, wherever it is named,
/// and neither units nor the end are written.
pub(super) fn prometheus(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut help = None;
    for line in open.lines() {
        if line.starts_with("# HELP ") {
            help = Some(line);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some(help) = help.take() {
                let words = help.splitn(4, ' ').nth(3).unwrap_or_default();
                text.push_str(&format!("# HELP {name}{suffix} {words}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_is_preferred() {
        let check = |accept: &str, format| assert_eq!(Format::preferred(accept), format, "{accept}");
        check("", Format::Prometheus);
        check("*/*", Format::Prometheus);
        check("text/html,application/xhtml+xml,*/*;q=0.8", Format::Prometheus);
        check("text/plain; version=0.0.4", Format::Prometheus);
        check("application/openmetrics-text", Format::OpenMetrics);
        check("application/openmetrics-text; version=1.0.0; q=0", Format::Prometheus);
        check("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;q=0.2", Format::Prometheus);
        // What Prometheus itself sends.
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;\
                          version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        check(prometheus, Format::OpenMetrics);
    }

    #[test]
    fn counters_have_their_whole_name_in_the_older_format() {
        let open = "# HELP kv_gets Gets of keys.\n# TYPE kv_gets counter\nkv_gets_total{node=\"a # b\"} 1\n\
                    # HELP kv_up Up.\n# TYPE kv_up gauge\n# UNIT kv_up x\nkv_up 1\n# EOF\n";
        let plain = "# HELP kv_gets_total Gets of keys.\n# TYPE kv_gets_total counter\nkv_gets_total{node=\"a # b\"} 1\n\
                     # HELP kv_up Up.\n# TYPE kv_up gauge\nkv_up 1\n";
        assert_eq!(prometheus(open), plain);
    }
}
