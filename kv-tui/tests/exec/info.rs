//! What is printed without a cluster.

use serde_json::{Value, json};

use crate::support::run_with;

#[test]
fn paths_and_completions_are_printed_without_a_cluster() {
    let info: Value = serde_json::from_slice(&run_with(&["info", "-o", "json"], b"").out).expect("JSON");
    assert_eq!(info["local_cluster"], json!("/nonexistent/kv-local"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(run_with(&["completions", shell], b"").text().contains("kv-tui"), "{shell}");
    }
    let none = run_with(&["local", "status"], b"");
    assert!(none.code == 3 && none.errors.contains("kv-tui local start makes one"), "{}", none.errors);
    assert_eq!(run_with(&["local", "destroy"], b"").code, 6);
}
