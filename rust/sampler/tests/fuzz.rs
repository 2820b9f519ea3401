//! Replays the inputs under `tests/fuzz/`: where fuzzing begins, and what it once found.

use std::path::Path;

#[path = "../../fuzz/targets/sampler.rs"]
mod target;

#[test]
fn every_kept_input_holds() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz");
    let mut count = 0;
    for folder in ["seeds", "regressions"] {
        let Ok(files) = std::fs::read_dir(kept.join(folder).join("sampler")) else { continue };
        for file in files {
            let path = file.expect("an entry").path();
            println!("{}", path.display());
            target::sampler(&std::fs::read(path).expect("a file"));
            count += 1;
        }
    }
    assert!(count > 0, "no seed");
    (0..8).for_each(|length| target::sampler(&[7; 8][..length]));
}
