// Only filters have a place in `filters!`.

struct NotAFilter;

attache::filters! { "not-a-filter" => NotAFilter }

fn main() {}
