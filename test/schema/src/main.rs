//! Writes the schemas: `make schema`.

use std::io;

fn main() -> io::Result<()> {
    for (filter, text) in schemas::all() {
        std::fs::write(schemas::file(filter), text)?;
        println!("contrib/filters/{filter}/schema.json");
    }
    Ok(())
}
