//! How a node learns its name in Kubernetes.

/// How this node is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeName {
    /// By this name.
    Known(String),
    /// As the pod says in which the agent runs.
    OfPod {
        /// The pod's namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// Why nothing says how this node is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--kube-subnet-mgr: which Node is this? Set the variable NODE_NAME, or POD_NAME and POD_NAMESPACE: in a DaemonSet by \
     fieldRef spec.nodeName, or metadata.name and metadata.namespace"
)]
pub struct NodeNameError;

impl NodeName {
    /// From environment variables, as upstream: `NODE_NAME`, or `POD_NAME` with `POD_NAMESPACE`.
    ///
    /// # Errors
    /// When neither is set.
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, NodeNameError> {
        let given = |name| variable(name).filter(|value| !value.is_empty());
        match (
            given("NODE_NAME"),
            given("POD_NAMESPACE"),
            given("POD_NAME"),
        ) {
            (Some(name), ..) => Ok(Self::Known(name)),
            (None, Some(namespace), Some(name)) => Ok(Self::OfPod { namespace, name }),
            _ => Err(NodeNameError),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_nodes_name_comes_from_variables() {
        let of = |variables: &[(&str, &str)]| {
            let variables: BTreeMap<String, String> = variables
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect();
            NodeName::from_variables(|name| variables.get(name).cloned())
        };
        let pod = [("POD_NAME", "p"), ("POD_NAMESPACE", "s")];
        assert_eq!(
            of(&[("NODE_NAME", "n1"), pod[0], pod[1]]),
            Ok(NodeName::Known("n1".into()))
        );
        let expected = NodeName::OfPod {
            namespace: "s".into(),
            name: "p".into(),
        };
        assert_eq!(of(&[("NODE_NAME", ""), pod[0], pod[1]]), Ok(expected));
        for incomplete in [&[][..], &pod[..1], &pod[1..]] {
            let error = of(incomplete).unwrap_err().to_string();
            assert!(
                error.contains("NODE_NAME") && error.contains("POD_NAMESPACE"),
                "{error}"
            );
        }
    }
}
