{{/* The image of the agent. */}}
{{- define "flannel.image" -}}
{{ .Values.flannel.image.repository }}:{{ .Values.flannel.image.tag }}
{{- end }}

{{/* The image that the CNI plugin is in. */}}
{{- define "flannel.cniImage" -}}
{{- $own := .Values.flannel.flannel_cni.image -}}
{{ $own.repository | default .Values.flannel.image.repository }}:{{ $own.tag | default .Values.flannel.image.tag }}
{{- end }}

{{/* The network config, as the agent reads it. */}}
{{- define "flannel.netConf" -}}
{{- $flannel := .Values.flannel -}}
{{- $known := list "vxlan" "host-gw" "udp" "ipip" "alloc" "extension" -}}
{{- if not (has $flannel.backend $known) -}}
{{- fail (printf "flannel.backend: %s: this agent has %s; set it to one of them" $flannel.backend (join ", " $known)) -}}
{{- end -}}
{{- $backend := dict "Type" $flannel.backend -}}
{{- if and (has $flannel.backend (list "vxlan" "udp")) $flannel.backendPort -}}
{{- $_ := set $backend "Port" (int $flannel.backendPort) -}}
{{- end -}}
{{- if and (has $flannel.backend (list "vxlan" "ipip")) $flannel.directRouting -}}
{{- $_ := set $backend "DirectRouting" true -}}
{{- end -}}
{{- if eq $flannel.backend "vxlan" -}}
{{- if $flannel.vni -}}{{- $_ := set $backend "VNI" (int $flannel.vni) -}}{{- end -}}
{{- if $flannel.GBP -}}{{- $_ := set $backend "GBP" true -}}{{- end -}}
{{- if $flannel.mtu -}}{{- $_ := set $backend "MTU" (int $flannel.mtu) -}}{{- end -}}
{{- if $flannel.macPrefix -}}{{- $_ := set $backend "MacPrefix" $flannel.macPrefix -}}{{- end -}}
{{- end -}}
{{- if eq $flannel.backend "extension" -}}
{{- $backend = merge $backend $flannel.extension -}}
{{- end -}}
{{- $config := dict "EnableNFTables" $flannel.enableNFTables "Backend" $backend -}}
{{- if .Values.podCidr -}}
{{- $_ := set $config "Network" .Values.podCidr -}}
{{- else -}}
{{- $_ := set $config "EnableIPv4" false -}}
{{- end -}}
{{- if .Values.podCidrv6 -}}
{{- $_ := set $config "IPv6Network" .Values.podCidrv6 -}}
{{- $_ := set $config "EnableIPv6" true -}}
{{- end -}}
{{- $config | toPrettyJson -}}
{{- end }}

{{/* The agent's arguments, a YAML list. */}}
{{- define "flannel.args" -}}
{{- $flannel := .Values.flannel -}}
{{- $args := $flannel.args -}}
{{- if $flannel.healthz.port -}}
{{- $args = append $args (printf "--healthz-port=%d" (int $flannel.healthz.port)) -}}
{{- end -}}
{{- $fast := $flannel.fastPath -}}
{{- if $fast.mode -}}{{- $args = append $args (printf "--fast-path=%s" $fast.mode) -}}{{- end -}}
{{- range list "revalidate" "grace" "flows" "heartbeat" "attest" "mark" "ingress" "egress" "attach" -}}
{{- if get $fast . -}}{{- $args = append $args (printf "--fast-path-%s=%s" . (get $fast . | toString)) -}}{{- end -}}
{{- end -}}
{{- if $flannel.antiSpoof -}}{{- $args = append $args (printf "--anti-spoof=%s" $flannel.antiSpoof) -}}{{- end -}}
{{- if $flannel.trafficRules -}}{{- $args = append $args (printf "--traffic-rules=%s" $flannel.trafficRules) -}}{{- end -}}
{{- if $flannel.logFormat -}}{{- $args = append $args (printf "--log-format=%s" $flannel.logFormat) -}}{{- end -}}
{{- $args | toYaml -}}
{{- end }}

{{/* What an init container may: nothing but to write files of root's. */}}
{{- define "flannel.installerSecurity" -}}
runAsUser: 0
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
