//! Replays the inputs under `tests/fuzz/`: where fuzzing begins, and what it once found.

use std::path::Path;

#[path = "../../fuzz/targets/mod.rs"]
mod targets;

#[test]
fn every_kept_input_holds() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz");
    for (name, run) in targets::TARGETS {
        let mut count = 0;
        for folder in ["seeds", "regressions"] {
            let Ok(files) = std::fs::read_dir(kept.join(folder).join(name)) else { continue };
            for file in files {
                let path = file.expect("an entry").path();
                println!("{}", path.display());
                run(&std::fs::read(path).expect("a file"));
                count += 1;
            }
        }
        assert!(count > 0, "{name} has no seed");
        // What is cut off or empty holds as well.
        (0..8).for_each(|length| run(&[7; 8][..length]));
    }
}
