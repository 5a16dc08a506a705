//! An image that somebody put into an SR beside its VDIs: what the command line says of it.

use serde_json::json;

use crate::house::House;

#[test]
fn a_copy_in_the_sr_is_told_and_keeps_what_it_needs() {
    let house = House::new();
    let daemon = house.start(&["--no-fuse"]);
    let at = house.path("sr");
    let location = format!("location={}", at.display());
    house.done(&["sr", "create", "--type", "file", "-o", &location, "--label", "sr"]);
    let source = house.done(&["vdi", "create", "-s", "4M"]);
    let clone = house.done(&["vdi", "clone", &source]);
    let base = house.json(0, &["sr", "scan", "sr"])["hidden"][0]["uuid"].clone();
    let base = base.as_str().unwrap().to_owned();
    let copy = at.join("before the update.vhd");
    std::fs::copy(at.join(format!("{clone}.vhd")), &copy).unwrap();
    let (code, _, told) = house.orlop(&["sr", "scan", "sr"]);
    assert!(code == 0 && told.contains("before the update.vhd") && told.contains(&base), "{told}");
    assert!(told.contains("rename it to a fresh uuid"), "{told}");
    let scan = house.json(0, &["sr", "scan", "sr"]);
    assert_eq!(scan["hidden"][0]["strays"], json!(["before the update.vhd"]));
    // Nothing of what the copy needs goes, and nobody promises that it would.
    house.done(&["vdi", "delete", &clone, "--yes"]);
    assert_eq!(house.done(&["sr", "gc", "sr", "--dry-run"]), "");
    let told = house.done(&["sr", "gc", "sr"]);
    assert!(told.contains("before the update.vhd") && told.contains("merged 0"), "{told}");
    assert!(at.join(format!("{base}.vhd")).exists());
    // A child of what is a VDI: that is neither written nor grown, and who deletes it is told.
    let path = at.join(format!("{source}.vhd"));
    let child = at.join("child.vhd");
    house.done(&["create", child.to_str().unwrap(), "--parent", path.to_str().unwrap()]);
    for words in [
        &["vdi", "attach", &source, "--read-write"][..],
        &["vdi", "resize", &source, "8M"],
        &["vdi", "snapshot", &source],
    ] {
        let (code, out, told) = house.orlop(words);
        assert!(code != 0 && told.contains("child.vhd"), "{words:?}: {out}{told}");
    }
    assert!(house.fails(2, &["vdi", "delete", &source]).contains("child.vhd"));
    for file in [child, copy] {
        std::fs::remove_file(file).unwrap();
    }
    assert!(house.done(&["sr", "gc", "sr"]).contains("merged 1"));
    assert!(!at.join(format!("{base}.vhd")).exists());
    daemon.stop();
}
