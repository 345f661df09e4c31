//! Flags of every command that can read a cluster.
//!
//! In: flags, environment. Out: whether there is a cluster, and where in it the mesh lives.
//! Kept true: the same names in all components. Not here: what each reads of it.

/// Flags of commands that read a Kubernetes cluster.
#[derive(clap::Args, Clone, Debug)]
pub struct KubeArgs {
    /// Read objects from the Kubernetes API server: that of the pod's cluster, or else of $KUBECONFIG
    #[arg(long, env = "KUBE", help_heading = "Kubernetes")]
    pub kube: bool,
    /// Namespace of the mesh's own components, and of mesh-wide objects
    #[arg(
        long,
        env = "POD_NAMESPACE",
        value_name = "NAME",
        default_value = mesh_config::kinds::ROOT_NAMESPACE,
        help_heading = "Kubernetes"
    )]
    pub mesh_namespace: String,
}
