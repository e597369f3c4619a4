//! What a command printed, and what is pasted into its line.

use super::*;
use crate::command::Line;
use crate::dashboard::model::Output;

/// What the bar prints, on a screen of 80x24.
fn printed(line: &str, lines: &[String], code: Option<u8>) -> Session {
    let mut session = session(80, 24);
    let follows = Line::parse_line(line.as_bytes()).ok().flatten().is_some_and(|line| line.command.follows());
    session.model.output = Some(Output { line: line.to_owned(), follows, code, ..Output::default() });
    session.send(Msg::Feed(Feed::Output(lines.to_vec())));
    session
}

#[test]
fn a_long_value_wraps_and_scrolls_from_its_head() {
    let value: String = (0..400).map(|number| format!("<{number:03}> ")).collect();
    let mut session = printed("get k", std::slice::from_ref(&value), Some(0));
    // 2400 characters in rows of 78.
    assert!(session.text().contains("<000> <001>") && session.text().contains("1-13 of 31"), "{}", session.text());
    session.keys("j");
    assert!(session.text().contains("2-14 of 31"), "{}", session.text());
    session.at(MouseKind::WheelDown, "2-14 of 31");
    assert!(session.text().contains("5-17 of 31"), "{}", session.text());
    session.keys("G");
    assert!(session.text().contains("<399>") && session.text().contains("19-31 of 31"), "{}", session.text());
    session.keys("g");
    assert!(session.text().contains("1-13 of 31"), "{}", session.text());
    // Row by row, every character of it is seen.
    let shown: String = (0..31_usize)
        .map(|row| {
            session.model.output.as_mut().expect("an output").first_row = Some(row.min(18));
            let text = session.text();
            let row = row.saturating_sub(18);
            let rows: Vec<&str> = text.lines().skip_while(|line| !line.contains(":get k")).skip(1).collect();
            format!("{:<78}", rows[row].strip_prefix(' ').unwrap_or(rows[row]))
        })
        .collect();
    assert_eq!(shown.trim_end(), value.trim_end());
    session.key(Key::Esc);
    assert!(session.model.output.is_none());
}

#[test]
fn wide_values_wrap_and_short_ones_say_nothing_of_it() {
    let session = printed("get k", &["안녕".repeat(60)], Some(0));
    let rows = session.text().lines().filter(|line| line.contains("안녕")).count();
    assert_eq!(rows, 4, "240 columns in rows of 78: {}", session.text());
    let session = printed("get k", &["short".to_owned()], Some(0));
    assert!(!session.text().contains(" of 1"), "{}", session.text());
}

#[test]
fn what_goes_on_is_followed_at_its_end() {
    let lines: Vec<String> = (0..40).map(|number| format!("event {number}")).collect();
    let mut session = printed("events --follow", &lines, None);
    assert!(session.text().contains("event 39"), "{}", session.text());
    session.keys("k");
    session.send(Msg::Feed(Feed::Output(vec!["event 40".to_owned()])));
    assert!(!session.text().contains("event 40"), "who has scrolled stays there: {}", session.text());
    session.keys("G");
    session.send(Msg::Feed(Feed::Output(vec!["event 41".to_owned()])));
    assert!(session.text().contains("event 41"), "{}", session.text());
}

#[test]
fn a_paste_that_is_too_long_is_refused_with_a_word() {
    let mut session = session(80, 24);
    session.keys(":put k ");
    session.send(Msg::Paste("x".repeat(70_000)));
    assert!(session.model.notice.contains("--value-file"), "{}", session.model.notice);
    assert_eq!(session.model.bar.as_ref().map(|bar| bar.text.as_str()), Some("put k "));
}
