-- Health of a KindCluster, for Argo CD: key resource.customizations.health.nestling.dev_KindCluster of the ConfigMap argocd-cm.
local health = {status = "Progressing", message = "waiting for the operator"}
if obj.status == nil or obj.status.conditions == nil then
  return health
end
if obj.status.observedGeneration ~= nil and obj.metadata.generation ~= nil and obj.status.observedGeneration < obj.metadata.generation then
  health.message = "the operator has not seen the newest change yet"
  return health
end
local conditions = {}
for _, condition in ipairs(obj.status.conditions) do
  conditions[condition.type] = condition
end
local function holds(kind)
  return conditions[kind] ~= nil and conditions[kind].status == "True"
end
local function say(status, condition)
  health.status = status
  health.message = condition.reason .. ": " .. (condition.message or "")
  return health
end
if holds("Stalled") then
  return say("Degraded", conditions["Stalled"])
end
if holds("Paused") then
  return say("Suspended", conditions["Paused"])
end
if holds("Ready") then
  health.status = "Healthy"
  health.message = "all nodes are ready"
  return health
end
if holds("Suspended") then
  return say("Suspended", conditions["Suspended"])
end
if conditions["Ready"] ~= nil then
  return say("Progressing", conditions["Ready"])
end
return health
