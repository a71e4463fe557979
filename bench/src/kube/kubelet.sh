# A node's own view of the machine, with a container runtime and kubelet in it. Runs as the first process of a namespace of
# processes, in mount and network namespaces of its own: all of it ends with it.
# Arguments: the node's name, its address, its folder, the folders of containerd's and of Kubernetes' programs, the image
# of the agent, and the name of the control group for all of it.
set -eu
name=$1 address=$2 folder=$3 containerd=$4 kubernetes=$5 image=$6 cgroup=$7
PATH=$containerd/usr/bin:$containerd/usr/sbin:$PATH
export LD_LIBRARY_PATH=$containerd/usr/lib/x86_64-linux-gnu:$containerd/usr/lib/aarch64-linux-gnu

# What kubelet, runtime and pods leave in fixed places is memory of this node's. The lab's folder stays where it is.
run=$folder/run
mkdir "$run"
mount -t tmpfs run "$run"
mkdir "$run/flannel-lab"
mount --rbind /run/flannel-lab "$run/flannel-lab"
mount --rbind "$run" /run
for place in /opt /etc/cni /var/lib/cni /var/lib/kubelet /var/log/pods /var/log/containers; do
    mkdir -p "$place"
    mount -t tmpfs node "$place"
done
mkdir -p /opt/cni/bin /etc/cni/net.d
for plugins in /usr/lib/cni /usr/libexec/cni; do
    [ ! -d "$plugins" ] || cp "$plugins"/* /opt/cni/bin
done
mount -t bpf bpf /sys/fs/bpf
# As systemd leaves it: volumes with propagation need it.
mount --make-rshared /

# An image with busybox serves as all pods but the agent's, and as the runtime's own.
pods=$folder/pods
mkdir -p "$pods/root/bin" "$pods/root/www"
cp "$(command -v busybox)" "$pods/root/bin/busybox"
echo "hello from $name" >"$pods/root/www/index.html"
tar -C "$pods/root" -cf "$pods/layer.tar" .
layer=$(sha256sum "$pods/layer.tar" | cut -d ' ' -f 1)
cat >"$pods/config.json" <<END
{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:$layer"]},
 "config": {"Entrypoint": ["/bin/busybox", "sleep", "1000000"]}}
END
cat >"$pods/manifest.json" <<END
[{"Config": "config.json", "RepoTags": ["docker.io/library/pods:1"], "Layers": ["layer.tar"]}]
END
tar -C "$pods" -cf "$pods/image.tar" config.json manifest.json layer.tar

cat >"$folder/containerd.toml" <<END
version = 2
root = "/run/containerd-root"
state = "/run/containerd"
[grpc]
address = "/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/library/pods:1"
# Not every root may make a process less likely to be killed.
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
END
containerd --config "$folder/containerd.toml" >"$folder/containerd.log" 2>&1 &
until ctr -a /run/containerd.sock version >/dev/null 2>&1; do sleep 0.2; done
for archive in "$pods/image.tar" "$image"; do
    ctr -a /run/containerd.sock -n k8s.io image import "$archive"
done

"$kubernetes/kube-proxy" --kubeconfig="$folder/admin.conf" --hostname-override="$name" --proxy-mode=iptables \
    --cluster-cidr=10.244.0.0/16 --conntrack-max-per-core=0 --conntrack-min=0 >"$folder/kube-proxy.log" 2>&1 &

cat >"$folder/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
oomScoreAdj: 0
address: $address
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 1Mi, nodefs.available: "0%", imagefs.available: "0%"}
END
exec "$kubernetes/kubelet" --config="$folder/kubelet.yaml" --kubeconfig="$folder/admin.conf" \
    --hostname-override="$name" --node-ip="$address" --container-runtime=remote \
    --container-runtime-endpoint=unix:///run/containerd.sock --network-plugin=cni --cert-dir="$folder/certificates" \
    --cgroup-root="/$cgroup"
