{{/* Name of the chart, for labels. */}}
{{- define "aks-audit.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of the objects: the release's, with the chart's unless that is part of it. 55 leave room for "-metrics". */}}
{{- define "aks-audit.fullname" -}}
{{- $name := include "aks-audit.name" . }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $full .Values.fullnameOverride | trunc 55 | trimSuffix "-" }}
{{- end }}

{{- define "aks-audit.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* commonLabels come last in the merge: they add labels and never change one. */}}
{{- define "aks-audit.labels" -}}
{{- $own := dict "helm.sh/chart" (include "aks-audit.chart" .) "app.kubernetes.io/managed-by" .Release.Service }}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion }}
{{- merge $own (include "aks-audit.selectorLabels" . | fromYaml) .Values.commonLabels | toYaml }}
{{- end }}

{{- define "aks-audit.selectorLabels" -}}
app.kubernetes.io/name: {{ include "aks-audit.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "aks-audit.serviceAccountName" -}}
{{- default (.Values.serviceAccount.create | ternary (include "aks-audit.fullname" .) "default") .Values.serviceAccount.name }}
{{- end }}

{{- define "aks-audit.image" -}}
{{- with .Values.image }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}{{ with .digest }}@{{ . }}{{ end }}
{{- end }}
{{- end }}

{{- define "aks-audit.secretName" -}}
{{- default (include "aks-audit.fullname" .) .Values.existingSecret }}
{{- end }}

{{- define "aks-audit.configMapName" -}}
{{- include "aks-audit.fullname" . }}
{{- end }}

{{- define "aks-audit.claimName" -}}
{{- default (include "aks-audit.fullname" .) .Values.persistence.existingClaim }}
{{- end }}

{{/* "true" if replicas share the checkpoints in a storage account. */}}
{{- define "aks-audit.sharedStorage" -}}
{{- with .Values.blobStorage }}
{{- if or .connectionString .accountUrl .inExistingSecret }}true{{ end }}
{{- end }}
{{- end }}

{{/* "true" if the pod needs a volume of its own. */}}
{{- define "aks-audit.persistent" -}}
{{- if and .Values.persistence.enabled (not (include "aks-audit.sharedStorage" .)) }}true{{ end }}
{{- end }}

{{/* Where the forwarder posts to. */}}
{{- define "aks-audit.webhookUrl" -}}
{{- with .Values.webhook }}
{{- default (printf "http://%s:%d/k8s_audit" .service.name (int .service.port)) .url }}
{{- end }}
{{- end }}

{{/* The same as it may be shown: without user, password and query. */}}
{{- define "aks-audit.webhookUrlShown" -}}
{{- regexReplaceAll "[?#].*" (regexReplaceAll "//[^/?#]*@" (include "aks-audit.webhookUrl" .) "//") "" }}
{{- end }}

{{/* "true" if KEDA sets the replicas. Values that came later than chart 0.1.0 may be missing: helm upgrade --reuse-values. */}}
{{- define "aks-audit.scaled" -}}
{{- with .Values.keda }}
{{- if .enabled }}true{{ end }}
{{- end }}
{{- end }}

{{/* "true" if the pod logs in with Microsoft Entra ID. */}}
{{- define "aks-audit.entraId" -}}
{{- if or .Values.eventHub.namespace .Values.blobStorage.accountUrl .Values.workloadIdentity.enabled }}true{{ end }}
{{- end }}

{{/* Fails unless the cluster serves this kind: a dict of root, api ("GROUP/VERSION/KIND") and key, the value that asks for it. */}}
{{- define "aks-audit.requireApi" -}}
{{- if not (.root.Capabilities.APIVersions.Has .api) }}
{{- fail (printf "%s needs %s, which the cluster does not serve: install what brings it first, or leave %s out. helm template asks no cluster: add --api-versions %s" .key .api .key .api) }}
{{- end }}
{{- end }}

{{/* Ports of the webhook: that of its URL, or both of the Service that the chart makes. */}}
{{- define "aks-audit.webhookPorts" -}}
{{- with .Values.webhook }}
{{- if .url }}
{{- $host := (urlParse .url).host }}
- {{ regexMatch ":[0-9]+$" $host | ternary (regexFind "[0-9]+$" $host) (hasPrefix "https:" .url | ternary "443" "80") }}
{{- else }}
- {{ int .service.port }}
- {{ .service.targetPort }}
{{- end }}
{{- end }}
{{- end }}

{{/* Value of app.kubernetes.io/name of helm test's pod: another one than the forwarder's, whose Services must not find it. */}}
{{- define "aks-audit.checkName" -}}
{{- include "aks-audit.name" . | trunc 57 }}-check
{{- end }}
