{{- define "steelyard.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough for the names that are made from it: 52 is what a CronJob may have. */}}
{{- define "steelyard.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 42 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "steelyard.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 42 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | replace "." "-" | lower | trunc 42 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "steelyard.selector" -}}
app.kubernetes.io/name: {{ include "steelyard.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "steelyard.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "steelyard.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "steelyard.image" -}}
{{- $tagged := printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- if .Values.image.digest -}}{{ $tagged }}@{{ .Values.image.digest }}{{- else -}}{{ $tagged }}{{- end -}}
{{- end -}}

{{- define "steelyard.serviceAccountName" -}}
{{- default (ternary (include "steelyard.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "steelyard.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled -}}{{ include "steelyard.fullname" . }}-tls{{- else -}}{{ .Values.tls.existingSecret }}{{- end -}}
{{- end -}}

{{- define "steelyard.accessSecret" -}}
{{- if .Values.access.table -}}{{ include "steelyard.fullname" . }}-access{{- else -}}{{ .Values.access.existingSecret }}{{- end -}}
{{- end -}}

{{/* The folder at which the CAs of clients are mounted: the server's own, or a bundle from elsewhere. */}}
{{- define "steelyard.clientCa" -}}
{{- with .Values.tls.clientCa -}}
{{- if or .configMap .existingSecret -}}/etc/steelyard/client-ca/{{ .key }}{{- else -}}/etc/steelyard/tls/ca.crt{{- end -}}
{{- end -}}
{{- end -}}

{{/* What fits together in no schema. Each message says what to set. */}}
{{- define "steelyard.validate" -}}
{{- $tls := include "steelyard.tlsSecret" . -}}
{{- if and (not $tls) (not .Values.insecure) -}}
{{- fail "expected tls.existingSecret, tls.certManager.enabled or insecure, got none of them: the server speaks no plaintext unless told so" -}}
{{- end -}}
{{- $name := include "steelyard.fullname" . -}}
{{- if not (regexMatch "^[a-z]" $name) -}}
{{- fail (printf "expected a name that begins with a letter, as those of Services do, got %q: give the release another, or set fullnameOverride" $name) -}}
{{- end -}}
{{- with .Values.ports -}}
{{- if or (eq (int .grpc) (int .http)) (eq (int .grpc) (int .health)) (eq (int .http) (int .health)) -}}
{{- fail (printf "expected three different ports, got %v" .) -}}
{{- end -}}
{{- end -}}
{{- if and $tls .Values.insecure -}}
{{- fail "expected either a certificate (tls) or insecure, got both" -}}
{{- end -}}
{{- if and .Values.insecure (include "steelyard.accessSecret" .) -}}
{{- fail "expected no access.table and no access.existingSecret with insecure: nobody can be recognised over plaintext, and tokens could be read on their way; give a certificate (tls) in place of insecure, or no access" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled .Values.tls.existingSecret -}}
{{- fail "expected tls.existingSecret or tls.certManager.enabled, got both" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "expected tls.certManager.issuerRef.name, got none" -}}
{{- end -}}
{{- with .Values.tls.clientCa }}
{{- if and .configMap .existingSecret -}}
{{- fail "expected tls.clientCa.configMap or tls.clientCa.existingSecret, got both" -}}
{{- end -}}
{{- if and (or .configMap .existingSecret) (or (not $tls) (eq $.Values.tls.clientCerts "none")) -}}
{{- fail "expected no tls.clientCa where no client certificates are asked for (insecure, or tls.clientCerts is none), got one" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.restore.enabled (not (or .Values.restore.from .Values.backup.to)) -}}
{{- fail "expected restore.from or backup.to, where restore.enabled is set, got neither" -}}
{{- end -}}
{{- if and .Values.access.table .Values.access.existingSecret -}}
{{- fail "expected access.table or access.existingSecret, got both" -}}
{{- end -}}
{{- if and .Values.backup.enabled (not .Values.backup.to) -}}
{{- fail "expected backup.to, where backup.enabled is set, got none" -}}
{{- end -}}
{{- with .Values.backup }}
{{- if .enabled -}}
{{- if and $tls (not .client.existingSecret) -}}
{{- fail "expected backup.client.existingSecret, by which the CronJob knows the server and shows who it is, got none" -}}
{{- end -}}
{{- if and $.Values.insecure .client.existingSecret -}}
{{- fail "expected no backup.client.existingSecret with insecure: the server speaks no TLS, and a token is never sent without" -}}
{{- end -}}
{{- if ne (empty .client.cert) (empty .client.key) -}}
{{- fail "expected both or neither of backup.client.cert and backup.client.key, got one" -}}
{{- end -}}
{{- if and $tls (eq $.Values.tls.clientCerts "required") (not .client.cert) -}}
{{- fail "expected backup.client.cert and backup.client.key, since tls.clientCerts is required, got neither" -}}
{{- end -}}
{{- if and (include "steelyard.accessSecret" $) (not .client.cert) (not .client.token) -}}
{{- fail "expected backup.client.cert or backup.client.token, since there is a table of principals, got neither" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (hasPrefix "/" .Values.backup.to) (not .Values.backup.existingClaim) (not (hasPrefix "/var/lib/steelyard/" .Values.backup.to)) -}}
{{- fail (printf "expected backup.existingClaim, to be mounted at backup.to, got none, and nothing can be written at %q" .Values.backup.to) -}}
{{- end -}}
{{- if and .Values.backup.existingClaim (has (clean .Values.backup.to) (list "/" "/tmp" "/etc" "/etc/steelyard" "/var" "/var/lib" "/var/lib/steelyard")) -}}
{{- fail (printf "expected backup.to to be a folder of its own, at which backup.existingClaim is mounted, got %q" .Values.backup.to) -}}
{{- end -}}
{{- if and .Values.backup.existingClaim (not (hasPrefix "/" .Values.backup.to)) -}}
{{- fail (printf "expected backup.to to be the folder at which backup.existingClaim is mounted, got %q" .Values.backup.to) -}}
{{- end -}}
{{- end -}}

{{/* The server's file. JSON writes numbers, truths, strings and lists as TOML does. */}}
{{- define "steelyard.config" -}}
data_dir = "/var/lib/steelyard/{{ .Values.storage.folder }}"
listen = "{{ .Values.listenHost }}:{{ .Values.ports.grpc }}"
http = "{{ .Values.listenHost }}:{{ .Values.ports.http }}"
health = "{{ .Values.listenHost }}:{{ .Values.ports.health }}"
http_anywhere = true
grace_seconds = {{ .Values.graceSeconds }}
{{- if include "steelyard.tlsSecret" . }}
tls_cert = "/etc/steelyard/tls/tls.crt"
tls_key = "/etc/steelyard/tls/tls.key"
{{- if ne .Values.tls.clientCerts "none" }}
tls_client_ca = "{{ include "steelyard.clientCa" . }}"
tls_client_certs = {{ .Values.tls.clientCerts | toJson }}
{{- end }}
{{- else }}
insecure = true
{{- end }}
{{- if include "steelyard.accessSecret" . }}
access = "/etc/steelyard/access/access.toml"
{{- end }}
{{- if .Values.backup.to }}
backup_to = {{ .Values.backup.to | toJson }}
backup_keep = {{ .Values.backup.keep }}
{{- end }}
{{- range $name, $value := .Values.config }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }} = {{ $value | toJson }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "steelyard.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ int . }}
runAsGroup: {{ int . }}
fsGroup: {{ int . }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "steelyard.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ int . }}
runAsGroup: {{ int . }}
{{- end }}
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Which nodes a pod may be on: the same for the server and for what works for it. */}}
{{- define "steelyard.nodes" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The same for a Job: what the server asks of other pods is not asked for it. */}}
{{- define "steelyard.jobNodes" -}}
{{- include "steelyard.nodes" . }}
{{- with (default dict .Values.affinity).nodeAffinity }}
affinity:
  nodeAffinity:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{/* Memory is request and limit at once. */}}
{{- define "steelyard.resources" -}}
requests:
  cpu: {{ .Values.resources.cpu | quote }}
  memory: {{ .Values.resources.memory }}
limits:
  {{- with .Values.resources.cpuLimit }}
  cpu: {{ . | quote }}
  {{- end }}
  memory: {{ .Values.resources.memory }}
{{- end -}}

{{/* What the server, and who restores for it, may reach. */}}
{{- define "steelyard.egress" -}}
{{- if .egress -}}
egress:
  {{- toYaml .egress | nindent 2 }}
  - ports:
      - port: 53
        protocol: UDP
      - port: 53
        protocol: TCP
{{- else -}}
egress: []
{{- end }}
{{- end -}}

{{/* What checkov may pass over in an object, and why. */}}
{{- define "steelyard.passed" -}}
{{- $root := first . -}}
checkov.io/skip1: CKV_K8S_11={{ last . }}
{{- if $root.Values.backup.envFrom }}
checkov.io/skip2: CKV_K8S_35=The libraries behind fsspec read the keys of a bucket from variables
{{- end }}
{{- if not $root.Values.runAsUser }}
checkov.io/skip3: CKV_K8S_40=The platform gives the user
{{- end }}
{{- end -}}
