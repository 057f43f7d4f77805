//! Replays the corpora of the fuzz targets; see fuzz/README.md.

#[expect(unreachable_pub, reason = "the same file is a module of the fuzz package")]
#[path = "../../../fuzz/src/wire.rs"]
mod wire;

#[test]
fn corpora_of_the_fuzz_targets_pass() {
    let corpora = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, target) in wire::TARGETS {
        let files = std::fs::read_dir(corpora.join(name)).unwrap_or_else(|error| panic!("corpus of {name}: {error}"));
        let mut inputs = 0;
        for file in files {
            let path = file.unwrap().path();
            println!("{}", path.display());
            target(&std::fs::read(path).unwrap());
            inputs += 1;
        }
        assert_ne!(inputs, 0, "the corpus of {name} is empty");
    }
}
