//! What a [`Cluster`](super::Cluster) and a [`SharedCluster`](super::SharedCluster) have in common:
//! each has a `name` and `limits`, and begins calls in the same words.

/// Writes it for one of them.
macro_rules! cluster_head {
    ($cluster:ident) => {
        impl std::fmt::Debug for $cluster {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($cluster), "({})"), self.name)
            }
        }

        impl $crate::cluster::request::sealed::Sealed for $cluster {
            fn name(&self) -> &str {
                &self.name
            }
        }

        impl $cluster {
            /// The name of the cluster.
            pub fn name(&self) -> &str {
                &self.name
            }

            /// The same cluster, with another [timeout](Callout::timeout) for all calls from here on.
            pub fn with_timeout(mut self, timeout: std::time::Duration) -> Self {
                self.limits.timeout = timeout;
                self
            }

            /// The same cluster, with another [limit](Callout::limit) for all responses from here on.
            pub fn with_limit(mut self, bytes: usize) -> Self {
                self.limits.response = bytes;
                self
            }

            /// A call with this method, to this path (query included).
            pub fn call(
                &self,
                method: http::Method,
                path: impl Into<std::borrow::Cow<'static, str>>,
            ) -> Callout<Self> {
                Callout::new(self.clone(), self.limits, method, path.into())
            }

            /// A GET request.
            pub fn get(&self, path: impl Into<std::borrow::Cow<'static, str>>) -> Callout<Self> {
                self.call(http::Method::GET, path)
            }

            /// A POST request.
            pub fn post(&self, path: impl Into<std::borrow::Cow<'static, str>>) -> Callout<Self> {
                self.call(http::Method::POST, path)
            }
        }
    };
}
pub(super) use cluster_head;
