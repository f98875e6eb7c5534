{{/* Names of what the chart creates: the release's, with the chart's where it does not say so already. */}}
{{- define "nestling.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "nestling.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "nestling.labels" -}}
{{ include "nestling.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "nestling.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "nestling.podImage" -}}
{{ .Values.nodeImage.repository }}:{{ .Values.nodeImage.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* No privilege of any kind: all privilege is in the clusters' pods. */}}
{{- define "nestling.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "nestling.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Whether the host refuses by ValidatingAdmissionPolicies. */}}
{{- define "nestling.admission" -}}
{{- if and .Values.policy.admission (.Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy") }}true{{ end -}}
{{- end -}}

{{/* What is limited, as JSON for the operator; nothing where nothing is. */}}
{{- define "nestling.policy" -}}
{{- $limited := dict -}}
{{- range $name, $value := omit .Values.policy "admission" -}}
{{- if $value }}{{ $_ := set $limited $name $value }}{{ end -}}
{{- end -}}
{{- if $limited }}{{ toJson $limited }}{{ end -}}
{{- end -}}

{{/*
Patterns of images as a JSON list of regular expressions, which is also a list of CEL. Each is written out in full first; what is done here to patterns,
validating-admission-policy.yaml does to images, and core/src/plan/policy/image.rs to both.
*/}}
{{- define "nestling.imageExpressions" -}}
{{- $expressions := list -}}
{{- range $pattern := . -}}
{{- if not (hasPrefix "*" $pattern) -}}
{{- $pattern = regexReplaceAll "^index[.]docker[.]io/" $pattern "docker.io/" -}}
{{- if not (regexMatch "^([^/]*[.:A-Z][^/]*|localhost)/" $pattern) }}{{ $pattern = print "docker.io/" $pattern }}{{ end -}}
{{- $pattern = regexReplaceAll "^docker[.]io/([^/]*)$" $pattern "docker.io/library/${1}" -}}
{{- end -}}
{{- $expression := regexQuoteMeta $pattern | replace "\\*" ".*" -}}
{{- if not (or (hasSuffix "*" $pattern) (regexMatch "@|:[^/]*$" $pattern)) }}{{ $expression = print $expression "[:@].*" }}{{ end -}}
{{- $expressions = append $expressions (printf "^%s$" $expression) -}}
{{- end -}}
{{- toJson $expressions -}}
{{- end -}}
