{{/* The names of things. The Service has an ending of its own, as deploy/service.yaml has. */}}
{{- define "vllm-chill.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "vllm-chill.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "vllm-chill.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "vllm-chill.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "vllm-chill.controller" -}}
{{ include "vllm-chill.fullname" . }}-controller
{{- end }}

{{- define "vllm-chill.account" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "vllm-chill.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "vllm-chill.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Where the target, the models, the policies and the Leases are. */}}
{{- define "vllm-chill.targetNamespace" -}}
{{- default .Release.Namespace .Values.target.namespace }}
{{- end }}

{{- define "vllm-chill.selector" -}}
app.kubernetes.io/name: {{ include "vllm-chill.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vllm-chill.controllerSelector" -}}
app.kubernetes.io/name: {{ include "vllm-chill.name" . }}-controller
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vllm-chill.commonLabels" -}}
app.kubernetes.io/part-of: vllm-chill
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "vllm-chill.labels" -}}
{{ include "vllm-chill.selector" . }}
{{ include "vllm-chill.commonLabels" . }}
{{- end }}

{{- define "vllm-chill.controllerLabels" -}}
{{ include "vllm-chill.controllerSelector" . }}
{{ include "vllm-chill.commonLabels" . }}
{{- end }}

{{/* The binding of a role to the proxy. Takes the context, the kind and the name of the role, and a namespace, or "". */}}
{{- define "vllm-chill.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}Binding
metadata:
  name: {{ .name }}
  {{- with .namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include (.labels | default "vllm-chill.labels") .context | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: {{ .role | default .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .account | default (include "vllm-chill.account" .context) }}
    namespace: {{ .context.Release.Namespace }}
{{- end }}

{{/* A duration such as 1h30m in seconds: Sprig can add one to a date, and has no other way. */}}
{{- define "vllm-chill.seconds" -}}
{{- $date := toDate "2006-01-02" "2000-01-01" -}}
{{- sub (dateModify . $date | unixEpoch) (unixEpoch $date) -}}
{{- end }}

{{/* The pods of the proxy, as a peer of a NetworkPolicy in the target's namespace. */}}
{{- define "vllm-chill.proxyPeer" -}}
{{- if ne (include "vllm-chill.targetNamespace" .) .Release.Namespace -}}
namespaceSelector:
  matchLabels:
    kubernetes.io/metadata.name: {{ .Release.Namespace }}
{{ end -}}
podSelector:
  matchLabels:
    {{- include "vllm-chill.selector" . | nindent 4 }}
{{- end }}

{{/* The namespace of the engines, as part of a peer of a NetworkPolicy in the release's namespace. */}}
{{- define "vllm-chill.enginesNamespace" -}}
{{- if ne (include "vllm-chill.targetNamespace" .) .Release.Namespace -}}
namespaceSelector:
  matchLabels:
    kubernetes.io/metadata.name: {{ include "vllm-chill.targetNamespace" . }}
{{- end }}
{{- end }}

{{/* What the schema cannot say: values that do not go together, each with what to do. */}}
{{- define "vllm-chill.check" -}}
{{- $own := dict "VLLM_NAMESPACE" "target.namespace" "VLLM_DEPLOYMENT" "target.deployment" "VLLM_TARGET" "target.host" "VLLM_PORT" "target.port" "IDLE_TIMEOUT" "idleTimeout" "WAKE_TIMEOUT" "wakeTimeout" "START_TIMEOUT" "startTimeout" "DRAIN_TIMEOUT" "drainTimeout" "VLLM_CHILL_MODELS" "models.enabled" "CONTROLLERS" "policies.enabled and variants.enabled" "API_KEYS_FILE" "apiKeys.existingSecret" "ADMIN_AUTH" "adminAuth" "ADMIN_PORT" "adminPort" "TLS_CERT" "tls.existingSecret" "TLS_KEY" "tls.existingSecret" }}
{{- range $name, $_ := .Values.settings }}
{{- with get $own $name }}
{{- fail (printf "\n\nsettings.%s would not count, as the chart has a value for it: set %s.\n" $name .) }}
{{- end }}
{{- if has $name (list "HOST" "PORT" "VLLM_CHILL_BACKEND" "LOG_FORMAT" "KUBECONFIG") }}
{{- fail (printf "\n\nsettings.%s cannot be set: what runs in a pod has it as the chart has it. Leave it out.\n" $name) }}
{{- end }}
{{- end }}
{{- if and (gt (int .Values.replicaCount) 1) (eq (toString (get .Values.settings "LEADER_ELECT") | lower) "off") }}
{{- fail "\n\nsettings.LEADER_ELECT is off with more than one replica, so that each would put to sleep what another one uses: leave it out, or set replicaCount to 1.\n" }}
{{- end }}
{{- if and .Values.variants.enabled .Values.autoscaler.enabled }}
{{- fail "\n\nvariants.enabled and autoscaler.enabled would have two controllers look after the same variants: set one of them to false.\n" }}
{{- end }}
{{- if and (eq .Values.adminAuth "keys") (not .Values.apiKeys.existingSecret) }}
{{- fail "\n\nadminAuth is keys, and there are none: set apiKeys.existingSecret to a Secret with a file of keys, one of them with `admin: true`.\n" }}
{{- end }}
{{- if eq (toString .Values.adminPort) "8080" }}
{{- fail "\n\nadminPort is 8080, where the proxy listens already: set another one.\n" }}
{{- end }}
{{- range .Values.ingress.paths }}
{{- if or (eq . "/") (regexMatch "^/+proxy(/|$)" .) }}
{{- fail (printf "\n\ningress.paths has %q, which leads to /proxy/, where a model is put to sleep: name the paths that wake.\n" .) }}
{{- end }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- fail "\n\ningress.enabled needs a host: set ingress.hosts.\n" }}
{{- end }}
{{- end }}

{{/* What the Lease of whoever leads is called, as the proxy calls it. */}}
{{- define "vllm-chill.leaseName" -}}
{{- $own := ternary "vllm-chill" (printf "vllm-chill-%s" .Values.target.deployment) (or .Values.models.enabled (eq .Values.target.deployment "vllm")) -}}
{{- .Values.settings.LEASE_NAME | default $own -}}
{{- end }}
