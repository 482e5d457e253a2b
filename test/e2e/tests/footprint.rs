//! What a filter's config takes of Envoy's memory, before any exchange.

use attache_e2e::{Call, Config, ModuleFilter, Modules, Protocol, Upstream, Version};
use serde_json::Value;

/// Many configs are usual: one for each listener and filter chain, and the old ones while they drain.
#[tokio::test]
async fn a_config_that_nobody_uses_takes_little() {
    const CONFIGS: u64 = 32;
    let modules = Modules::new().package("attache-e2e-filters");
    let upstream = Upstream::echo().await;
    for version in Version::all() {
        let mut allocated = Vec::new();
        for count in [1, 1 + CONFIGS] {
            let config =
                (0..count).fold(Config::new().upstream(upstream.address()), |all, index| {
                    let filter = ModuleFilter::new("attache_e2e_filters", "fault");
                    all.filter(filter.instance(&format!("fault-{index}")))
                });
            let envoy = version.launch().modules(&modules).start(&config).await;
            let memory: Value = serde_json::from_str(&envoy.admin_get("/memory").await).unwrap();
            let bytes = memory["allocated"].as_str().expect("a number as text");
            allocated.push(bytes.parse::<u64>().expect("a number"));
            let mut client = envoy.connect(Protocol::Http2).await;
            assert_eq!(client.fetch(Call::post("/").body("fine")).await.text(), "fine");
            envoy.finish().await;
        }
        let each = (allocated[1] - allocated[0]) / CONFIGS;
        assert!(each < 256 * 1024, "{version}: {each} bytes for each config");
    }
}
