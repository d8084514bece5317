package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

const kubernetesDir = root + "/deploy/kubernetes"

// shapes are the overlays of deploy/kubernetes.
var shapes = []string{"standalone", "full", "edge", "hub"}

// apiService is what is used of apiregistration.k8s.io/v1, which is no part of k8s.io/api.
type apiService struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Group                string `json:"group"`
		Version              string `json:"version"`
		GroupPriorityMinimum int32  `json:"groupPriorityMinimum"`
		VersionPriority      int32  `json:"versionPriority"`
		CABundle             []byte `json:"caBundle"`
		// InsecureSkipTLSVerify of what was registered before must be taken back by name: it cannot stand beside CABundle.
		InsecureSkipTLSVerify *bool `json:"insecureSkipTLSVerify"`
		Service               struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
			Port      int32  `json:"port"`
		} `json:"service"`
	} `json:"spec"`
}

func (a *apiService) DeepCopyObject() runtime.Object { c := *a; return &c }

// manifests are the objects of one shape, by their types.
type manifests struct {
	t        *testing.T
	all      map[string]bool // kind/namespace/name
	pods     []workload
	services []*corev1.Service
	apis     []*apiService
	policies []*networkingv1.NetworkPolicy
	budgets  []*policyv1.PodDisruptionBudget
	roles    map[string]*rbacv1.ClusterRole
	bound    map[string][]string // the roles of a ServiceAccount, as kind/name
	store    string              // what a server of the bus may store, of the ConfigMap heapstream-cluster
	data     map[string][]string // the keys of ConfigMap/name and Secret/name
	classes  map[string]bool
	last     map[string]bool // of all, what takes another's place and can be left for last
}

// workload is whatever makes pods.
type workload struct {
	kind, name string
	replicas   int32
	selector   *metav1.LabelSelector
	pod        corev1.PodTemplateSpec
	claims     []corev1.PersistentVolumeClaim
}

// buildOverlay is an overlay as kustomize makes it, with made-up secrets.
func buildOverlay(t *testing.T, overlay string) []byte {
	t.Helper()
	files := filesys.MakeFsInMemory()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(filepath.WalkDir(kubernetesDir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(name, "/secrets/") {
			return err
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return files.WriteFile("/k/"+filepath.ToSlash(strings.TrimPrefix(name, kubernetesDir+"/")), data)
	}))
	dir := "/k/overlays/" + overlay
	kustomization, err := files.ReadFile(dir + "/kustomization.yaml")
	must(err)
	for _, secret := range regexp.MustCompile(`secrets/[a-z./-]+`).FindAllString(string(kustomization), -1) {
		must(files.WriteFile(dir+"/"+secret, []byte(madeUp(secret))))
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, dir)
	must(err)
	out, err := built.AsYaml()
	must(err)
	return out
}

// madeUp stands in for a file of secrets: as long as a certificate, which is written in several lines.
func madeUp(secret string) string { return strings.Repeat("made up: "+secret+"\n", 20) }

// decodeManifests takes apart a stream of objects. A field that a type does not have, or one twice, fails the test.
func decodeManifests(t *testing.T, stream []byte) *manifests {
	t.Helper()
	types := runtime.NewScheme()
	if err := scheme.AddToScheme(types); err != nil {
		t.Fatal(err)
	}
	types.AddKnownTypeWithName(schema.GroupVersionKind{Group: "apiregistration.k8s.io", Version: "v1", Kind: "APIService"}, &apiService{})
	decoder := serializer.NewCodecFactory(types, serializer.EnableStrict).UniversalDeserializer()
	m := &manifests{t: t, all: map[string]bool{}, roles: map[string]*rbacv1.ClusterRole{}, bound: map[string][]string{}, data: map[string][]string{}, last: map[string]bool{}, classes: map[string]bool{"system-node-critical": true, "system-cluster-critical": true}}
	bind := func(subjects []rbacv1.Subject, role rbacv1.RoleRef) {
		for _, s := range subjects {
			m.bound[s.Name] = append(m.bound[s.Name], role.Kind+"/"+role.Name)
		}
	}
	documents := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(stream)))
	for buf := make([]byte, len(stream)+1); ; {
		n, err := documents.Read(buf)
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(bytes.TrimSpace(buf[:n])) == 0 {
			continue
		}
		object, kind, err := decoder.Decode(buf[:n], nil, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, buf[:n])
		}
		meta := object.(metav1.Object)
		key := kind.Kind + "/" + meta.GetNamespace() + "/" + meta.GetName()
		if m.all[key] {
			t.Errorf("%s is there twice", key)
		}
		m.all[key] = true
		if meta.GetLabels()["app.kubernetes.io/component"] == "registration" {
			m.last[key] = true
		}
		switch o := object.(type) {
		case *appsv1.Deployment:
			m.pods = append(m.pods, workload{kind.Kind, o.Name, *o.Spec.Replicas, o.Spec.Selector, o.Spec.Template, nil})
		case *appsv1.StatefulSet:
			m.pods = append(m.pods, workload{kind.Kind, o.Name, *o.Spec.Replicas, o.Spec.Selector, o.Spec.Template, o.Spec.VolumeClaimTemplates})
		case *appsv1.DaemonSet:
			m.pods = append(m.pods, workload{kind.Kind, o.Name, 0, o.Spec.Selector, o.Spec.Template, nil})
		case *batchv1.Job:
			m.pods = append(m.pods, workload{kind.Kind, o.Name, 0, nil, o.Spec.Template, nil})
		case *corev1.Service:
			m.services = append(m.services, o)
		case *apiService:
			m.apis = append(m.apis, o)
		case *networkingv1.NetworkPolicy:
			m.policies = append(m.policies, o)
		case *policyv1.PodDisruptionBudget:
			m.budgets = append(m.budgets, o)
		case *rbacv1.ClusterRole:
			m.roles[o.Name] = o
		case *rbacv1.ClusterRoleBinding:
			bind(o.Subjects, o.RoleRef)
		case *rbacv1.RoleBinding:
			bind(o.Subjects, o.RoleRef)
		case *corev1.ConfigMap:
			m.data["ConfigMap/"+o.Name] = slices.Sorted(maps.Keys(o.Data))
			m.store = cmp.Or(m.store, o.Data["store"])
		case *corev1.Secret:
			m.data["Secret/"+o.Name] = slices.Sorted(maps.Keys(o.Data))
		default:
			if kind.Kind == "PriorityClass" {
				m.classes[meta.GetName()] = true
			} else if kind.Kind != "ServiceAccount" {
				t.Errorf("%s: nobody looks at objects of this kind", key)
			}
		}
	}
	return m
}

// check looks at everything that one object says of another, and at what every container must have.
func (m *manifests) check() {
	m.t.Helper()
	for i := range m.pods {
		m.checkWorkload(&m.pods[i])
	}
	for _, s := range m.services {
		selected := m.selected(labels.SelectorFromSet(s.Spec.Selector))
		if len(selected) != 1 {
			m.t.Errorf("Service %s selects %d workloads", s.Name, len(selected))
			continue
		}
		for _, p := range s.Spec.Ports {
			if !slices.Contains(slices.Collect(maps.Keys(ports(selected[0].pod.Spec))), p.TargetPort.StrVal) {
				m.t.Errorf("Service %s: its pods have no port %q", s.Name, p.TargetPort.String())
			}
		}
	}
	for _, a := range m.apis {
		if !slices.ContainsFunc(m.services, func(s *corev1.Service) bool {
			return s.Name == a.Spec.Service.Name && s.Namespace == a.Spec.Service.Namespace && s.Spec.Ports[0].Port == a.Spec.Service.Port
		}) {
			m.t.Errorf("APIService %s: there is no such Service", a.Name)
		}
		if a.Spec.InsecureSkipTLSVerify == nil || *a.Spec.InsecureSkipTLSVerify {
			m.t.Errorf("APIService %s does not take back the insecureSkipTLSVerify of who was registered before", a.Name)
		}
		if a.Name != a.Spec.Version+"."+a.Spec.Group || a.Spec.GroupPriorityMinimum <= 0 || a.Spec.VersionPriority <= 0 || len(a.Spec.CABundle) == 0 {
			m.t.Errorf("APIService %s is incomplete: %+v", a.Name, a.Spec)
		}
	}
	for key := range m.all {
		if takesOver := strings.HasPrefix(key, "APIService/") || key == "Service/kube-system/heapster"; takesOver != m.last[key] {
			m.t.Errorf("%s can be left for last: %t, want %t", key, m.last[key], takesOver)
		}
	}
	m.checkPolicies()
	for _, b := range m.budgets {
		s, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if selected := m.selected(s); err != nil || len(selected) != 1 || selected[0].replicas < 2 {
			m.t.Errorf("PodDisruptionBudget %s does not select one workload of several pods", b.Name)
		}
	}
	for account, roles := range m.bound {
		if !m.all["ServiceAccount/kube-system/"+account] {
			m.t.Errorf("ServiceAccount %s of a binding is not there", account)
		}
		for _, role := range roles {
			if _, name, _ := strings.Cut(role, "/"); m.roles[name] == nil && name != "system:auth-delegator" && name != "extension-apiserver-authentication-reader" {
				m.t.Errorf("%s, bound to %s, is not there", role, account)
			}
		}
	}
	for name, role := range m.roles {
		for _, r := range role.Rules {
			if slices.Contains(r.Verbs, "*") || slices.Contains(r.Resources, "nodes/proxy") || slices.Contains(r.Resources, "secrets") {
				m.t.Errorf("ClusterRole %s may too much: %+v", name, r)
			}
		}
	}
}

func (m *manifests) selected(by labels.Selector) (found []*workload) {
	for i := range m.pods {
		if by.Matches(labels.Set(m.pods[i].pod.Labels)) {
			found = append(found, &m.pods[i])
		}
	}
	return found
}

// ports are the container ports of a pod, by name.
func ports(spec corev1.PodSpec) map[string]int32 {
	all := map[string]int32{}
	for _, c := range spec.Containers {
		for _, p := range c.Ports {
			all[p.Name] = p.ContainerPort
		}
	}
	return all
}

// checkPolicies: every port that a pod has is let in by a policy, and no policy lets in one that none of its pods has.
func (m *manifests) checkPolicies() {
	m.t.Helper()
	open := map[*workload]map[int32]bool{}
	for _, p := range m.policies {
		s, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		selected := m.selected(s)
		if err != nil || len(selected) != 1 {
			m.t.Errorf("NetworkPolicy %s does not select one workload", p.Name)
			continue
		}
		w := selected[0]
		if open[w] == nil {
			open[w] = map[int32]bool{}
		}
		has := slices.Collect(maps.Values(ports(w.pod.Spec)))
		for _, rule := range p.Spec.Ingress {
			for _, port := range rule.Ports {
				if !slices.Contains(has, port.Port.IntVal) {
					m.t.Errorf("NetworkPolicy %s lets in port %s, which %s does not have", p.Name, port.Port, w.name)
				}
				open[w][port.Port.IntVal] = true
			}
		}
		for _, rule := range p.Spec.Egress {
			for _, to := range rule.To {
				s, err := metav1.LabelSelectorAsSelector(to.PodSelector)
				if err != nil || len(m.selected(s)) != 1 {
					m.t.Errorf("NetworkPolicy %s lets %s out to pods that are not there", p.Name, w.name)
					continue
				}
				for _, port := range rule.Ports {
					if !slices.Contains(slices.Collect(maps.Values(ports(m.selected(s)[0].pod.Spec))), port.Port.IntVal) {
						m.t.Errorf("NetworkPolicy %s lets %s out to port %s, where nobody listens", p.Name, w.name, port.Port)
					}
				}
			}
		}
	}
	for i := range m.pods {
		for name, number := range ports(m.pods[i].pod.Spec) {
			if !open[&m.pods[i]][number] {
				m.t.Errorf("no NetworkPolicy lets anybody in to port %s of %s", name, m.pods[i].name)
			}
		}
	}
}

func (m *manifests) checkWorkload(w *workload) {
	m.t.Helper()
	complain := func(format string, args ...any) { m.t.Errorf(w.kind+" "+w.name+": "+format, args...) }
	spec := w.pod.Spec
	if w.selector != nil {
		if s, err := metav1.LabelSelectorAsSelector(w.selector); err != nil || !s.Matches(labels.Set(w.pod.Labels)) {
			complain("does not select its own pods")
		}
	}
	if !m.all["ServiceAccount/kube-system/"+spec.ServiceAccountName] {
		complain("ServiceAccount %q is not there", spec.ServiceAccountName)
	}
	token := spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken
	if rights := len(m.bound[spec.ServiceAccountName]) > 0; rights != token {
		complain("has rights in the cluster: %t; has a token: %t", rights, token)
	}
	if !m.classes[spec.PriorityClassName] {
		complain("priority class %q is not there", spec.PriorityClassName)
	}
	if spec.EnableServiceLinks == nil || *spec.EnableServiceLinks {
		complain("gets an environment variable of each Service")
	}
	if spec.HostNetwork || spec.HostPID || spec.HostIPC {
		complain("shares namespaces of the host")
	}
	for _, v := range spec.Volumes {
		if v.HostPath != nil {
			complain("volume %s is of the host", v.Name)
		}
	}
	if c := spec.SecurityContext; c == nil || c.RunAsNonRoot == nil || !*c.RunAsNonRoot || c.RunAsUser == nil || *c.RunAsUser != 65532 || c.SeccompProfile == nil || c.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		complain("may run as root, or without seccomp")
	}
	if w.replicas > 1 {
		if len(spec.TopologySpreadConstraints) < 2 {
			complain("is not spread over hosts and zones")
		}
		for _, s := range spec.TopologySpreadConstraints {
			if by, err := metav1.LabelSelectorAsSelector(s.LabelSelector); err != nil || !by.Matches(labels.Set(w.pod.Labels)) {
				complain("is spread by other pods than its own")
			}
		}
		if !slices.ContainsFunc(m.budgets, func(b *policyv1.PodDisruptionBudget) bool {
			by, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
			return err == nil && by.Matches(labels.Set(w.pod.Labels))
		}) {
			complain("has no PodDisruptionBudget")
		}
	}
	volumes := map[string]bool{}
	for _, v := range spec.Volumes {
		volumes[v.Name] = true
		m.checkVolume(complain, v)
	}
	for _, c := range w.claims {
		volumes[c.Name] = true
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		for _, v := range c.VolumeMounts {
			if !volumes[v.Name] {
				complain("volume %q is not there", v.Name)
			}
		}
		m.checkContainer(complain, w.kind, c, ports(spec))
	}
}

func (m *manifests) checkContainer(complain func(string, ...any), kind string, c corev1.Container, ports map[string]int32) {
	m.t.Helper()
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
		complain("container %s: requests of cpu and memory and a limit of memory are wanted", c.Name)
	}
	if c.Resources.Limits.Memory().Cmp(*c.Resources.Requests.Memory()) < 0 {
		complain("container %s: its limit is below its request", c.Name)
	}
	if s := c.SecurityContext; s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem ||
		s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 || s.Privileged != nil {
		complain("container %s: its security context is not the strict one", c.Name)
	}
	if kind != "Job" {
		for what, p := range map[string]*corev1.Probe{"readiness": c.ReadinessProbe, "liveness": c.LivenessProbe} {
			switch {
			case p == nil:
				complain("container %s has no %s probe", c.Name, what)
			case p.HTTPGet != nil && p.HTTPGet.Port.Type == intstr.String && ports[p.HTTPGet.Port.StrVal] != 0:
			case p.Exec != nil && p.Exec.Command[0] == "/healthcheck" && len(p.Exec.Command) == 2:
			default:
				complain("container %s: its %s probe asks nobody: %+v", c.Name, what, p)
			}
		}
	}
	for _, e := range c.Env {
		switch from := e.ValueFrom; {
		case from == nil:
		case from.ConfigMapKeyRef != nil:
			m.checkKey(complain, "ConfigMap/"+from.ConfigMapKeyRef.Name, from.ConfigMapKeyRef.Key)
		case from.SecretKeyRef != nil:
			complain("container %s: a secret in the environment (%s)", c.Name, e.Name)
		}
	}
	program := strings.TrimPrefix(strings.Split(c.Image, ":")[0], "heapstream/")
	if program == "nats" {
		return
	}
	known, ok := helpFlags(m.t)[program]
	if !ok {
		complain("container %s: no program %q is known", c.Name, program)
		return
	}
	for _, a := range c.Args {
		flag, isFlag := strings.CutPrefix(a, "--")
		flag, _, _ = strings.Cut(flag, "=")
		if isFlag && !known[flag] {
			complain("container %s: %s has no flag --%s", c.Name, program, flag)
		}
	}
	for _, e := range c.Env {
		if twin, ours := strings.CutPrefix(e.Name, "HEAPSTREAM_"); ours && !known[strings.ToLower(strings.ReplaceAll(twin, "_", "-"))] {
			complain("container %s: %s has no flag with the twin %s", c.Name, program, e.Name)
		}
		for _, ref := range regexp.MustCompile(`\$\((\w+)\)`).FindAllStringSubmatch(e.Value, -1) { // only what stands above is replaced
			i := slices.IndexFunc(c.Env, func(o corev1.EnvVar) bool { return o.Name == ref[1] })
			if i < 0 || i >= slices.IndexFunc(c.Env, func(o corev1.EnvVar) bool { return o.Name == e.Name }) {
				complain("container %s: %s needs %s above it", c.Name, e.Name, ref[1])
			}
		}
	}
}

func (m *manifests) checkVolume(complain func(string, ...any), v corev1.Volume) {
	m.t.Helper()
	keys := func(of string, items []corev1.KeyToPath) {
		if m.data[of] == nil {
			complain("volume %s: %s is not there", v.Name, of)
		}
		for _, i := range items {
			m.checkKey(complain, of, i.Key)
		}
	}
	switch {
	case v.Secret != nil:
		keys("Secret/"+v.Secret.SecretName, v.Secret.Items)
	case v.ConfigMap != nil:
		keys("ConfigMap/"+v.ConfigMap.Name, v.ConfigMap.Items)
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			if s.Secret != nil {
				keys("Secret/"+s.Secret.Name, s.Secret.Items)
			} else {
				keys("ConfigMap/"+s.ConfigMap.Name, s.ConfigMap.Items)
			}
		}
	}
}

func (m *manifests) checkKey(complain func(string, ...any), of, key string) {
	m.t.Helper()
	if !slices.Contains(m.data[of], key) {
		complain("%s has no key %q", of, key)
	}
}

// helpFlags are the flags of each program by its --help, and those of the subcommand that Jobs call.
func helpFlags(t *testing.T) map[string]map[string]bool {
	t.Helper()
	all := map[string]map[string]bool{}
	for program, file := range map[string]string{
		"heapstream": "deploy/standalone/cmd/heapstream", "scraper": "scraper/cmd/scraper", "aggregator": "aggregator/cmd/aggregator", "apigw": "apigw/cmd/apigw", "sinks": "sinks/cmd/sinks",
	} {
		help, err := os.ReadFile(filepath.Join(root, file, "testdata", "help.golden"))
		if err != nil {
			t.Fatal(err)
		}
		all[program] = map[string]bool{}
		for _, flag := range regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z0-9-]+)`).FindAllStringSubmatch(string(help), -1) {
			all[program][flag[1]] = true
		}
	}
	// `heapstream bus apply` shares its connection's flags with the services; it has no golden of its own.
	source, err := os.ReadFile(filepath.Join(root, "deploy/standalone/cmd/heapstream/main.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range regexp.MustCompile(`fs\.\w+\(&topology\.\w+, "([a-z_-]+)"`).FindAllStringSubmatch(string(source), -1) {
		all["heapstream"][flag[1]] = true
	}
	for flag := range all["aggregator"] {
		if strings.HasPrefix(flag, "bus-") {
			all["heapstream"][flag] = true
		}
	}
	return all
}

// rights are what rules allow, as "verb group/resource", sorted.
func rights(rules []rbacv1.PolicyRule) (all []string) {
	for _, r := range rules {
		for _, g := range r.APIGroups {
			for _, res := range r.Resources {
				for _, v := range r.Verbs {
					all = append(all, v+" "+g+"/"+res)
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func rightsOf(u simcluster.User) []string {
	var rules []rbacv1.PolicyRule
	for _, r := range u.Rules {
		rules = append(rules, rbacv1.PolicyRule{Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources})
	}
	return rights(rules)
}

// Every shape is complete and strict: what one object says of another is there, containers have what they should and
// no more, and the scrapers' roles are the rules that TestRolesTogetherKnowEveryPod runs them with.
// checkStore: what the Jobs reserve on every server of the bus fits into what it may store, and that into its claim.
func (m *manifests) checkStore() {
	m.t.Helper()
	var claim, reserved int64
	for _, w := range m.pods {
		switch w.kind {
		case "StatefulSet":
			claim = w.claims[0].Spec.Resources.Requests.Storage().Value()
		case "Job":
			topology := bus.Topology{Cluster: "of-a-job"}
			for _, arg := range w.pod.Spec.Containers[0].Args {
				if domain, ok := strings.CutPrefix(arg, "--from-domain="); ok {
					topology.FromDomain = domain
				}
			}
			reserved += topology.Reserved()
			if shared := (bus.Topology{}).Reserved(); reserved > topology.Reserved() {
				reserved -= shared // by the first
			}
		}
	}
	if claim == 0 && m.store == "" {
		return
	}
	digits, unit := strings.TrimRight(m.store, "GMB"), strings.TrimLeft(m.store, "0123456789")
	n, err := strconv.ParseInt(digits, 10, 64)
	store := n * map[string]int64{"MB": 1 << 20, "GB": 1 << 30}[unit] // as the server reads them
	if err != nil || store < reserved || claim < store+store/16 {
		m.t.Errorf("a server may store %q, %d bytes, of a claim of %d; the streams take %d (%v)", m.store, store, claim, reserved, err)
	}
}

func TestManifestsOfEveryShape(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape, func(t *testing.T) {
			m := decodeManifests(t, buildOverlay(t, shape))
			m.check()
			m.checkRoles(shape)
			want := map[string]string{
				"standalone": "Deployment/heapstream=1",
				"full":       "DaemonSet/heapstream-node=0 Deployment/heapstream-aggregator=2 Deployment/heapstream-apigw=2 Deployment/heapstream-inventory=2 Deployment/heapstream-sinks=2 Job/heapstream-provision=0 StatefulSet/heapstream-nats=3",
				"edge":       "DaemonSet/heapstream-node=0 Deployment/heapstream-aggregator=2 Deployment/heapstream-apigw=2 Deployment/heapstream-inventory=2 Job/heapstream-provision=0 StatefulSet/heapstream-nats=3",
				"hub":        "Deployment/heapstream-apigw=2 Deployment/heapstream-sinks=2 Job/heapstream-provision-edge-1=0 Job/heapstream-provision-edge-2=0 StatefulSet/heapstream-nats=3",
			}[shape]
			var got []string
			for _, w := range m.pods {
				got = append(got, fmt.Sprintf("%s/%s=%d", w.kind, w.name, w.replicas))
			}
			slices.Sort(got)
			if s := strings.Join(got, " "); s != want {
				t.Errorf("workloads are %s, want %s", s, want)
			}
			if apis := map[bool]int{true: 0, false: 5}[shape == "hub"]; len(m.apis) != apis {
				t.Errorf("%d APIs are registered, want %d", len(m.apis), apis)
			}
			for _, a := range m.apis {
				if want := madeUp("secrets/serving/ca.crt"); string(a.Spec.CABundle) != want {
					t.Errorf("%s is vouched for by %q, want ca.crt of heapstream-serving, %q", a.Name, a.Spec.CABundle, want)
				}
			}
			m.checkStore()
			for _, s := range m.services { // what dashboards ask, before and after
				if s.Name == "heapster" && (s.Namespace != "kube-system" || s.Spec.Ports[0].Port != 80 || ports(m.selected(labels.SelectorFromSet(s.Spec.Selector))[0].pod.Spec)[s.Spec.Ports[0].TargetPort.StrVal] != 8082) {
					t.Errorf("Service heapster is not where Heapster's was: %+v", s.Spec)
				}
			}
			if !m.all["Service/kube-system/heapster"] {
				t.Error("there is no Service heapster")
			}
		})
	}
}

func (m *manifests) checkRoles(shape string) {
	m.t.Helper()
	want := map[string][]string{}
	if shape == "full" || shape == "edge" {
		for _, u := range rolesOfScrapers[1:] {
			want[u.Name[strings.LastIndexByte(u.Name, ':')+1:]] = rightsOf(u)
		}
	}
	for account, rules := range want {
		var got []rbacv1.PolicyRule
		for _, role := range m.bound[account] {
			got = append(got, m.roles[strings.TrimPrefix(role, "ClusterRole/")].Rules...)
		}
		if g := rights(got); !slices.Equal(g, rules) {
			m.t.Errorf("%s may\n%s\nwhile the role needs\n%s", account, strings.Join(g, "\n"), strings.Join(rules, "\n"))
		}
	}
	gateway := []string{"ClusterRole/system:auth-delegator", "Role/extension-apiserver-authentication-reader"}
	if shape == "standalone" {
		// One account for all of it: what both scrapers need, and the other sources.
		need := slices.Concat(rightsOf(rolesOfScrapers[1]), rightsOf(rolesOfScrapers[2]), []string{"create /nodes/stats", "get /nodes/metrics"})
		need = slices.DeleteFunc(need, func(r string) bool { return r == "get /nodes" }) // of its list
		slices.Sort(need)
		if got := rights(m.roles["heapstream"].Rules); !slices.Equal(got, slices.Compact(need)) {
			m.t.Errorf("heapstream may\n%s\nand needs\n%s", strings.Join(got, "\n"), strings.Join(need, "\n"))
		}
		gateway = append([]string{"ClusterRole/heapstream"}, gateway...)
	}
	account := cmp.Or(map[string]string{"standalone": "heapstream"}[shape], "heapstream-apigw")
	got := slices.Sorted(slices.Values(m.bound[account]))
	if !slices.Equal(got, gateway) {
		m.t.Errorf("%s is bound to %v, want %v", account, got, gateway)
	}
	if n := len(want) + 1; len(m.bound) != n {
		m.t.Errorf("%d accounts have rights, want %d: %v", len(m.bound), n, m.bound)
	}
}

// deadlineOf ends when waiting is in vain.
func deadlineOf(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// busUsers are the bus users of a server that serves one cluster, or, where it is empty, of a hub.
func busUsers(cluster string) string {
	roles := bus.Roles()
	if cluster == "" {
		roles = []bus.Role{bus.RoleGateway, bus.RoleSinks, bus.RoleAdmin}
	}
	var b strings.Builder
	b.WriteString("# A user per role with what bus.Permissions says that it needs. Written by a test, which also sees that it is so:\n" +
		"# cd e2e && go test -run TestBusUsersOfManifests -update .\nauthorization {\n  users: [\n")
	for _, role := range roles {
		publish, subscribe := bus.Permissions(role, cluster)
		only := ""
		if cluster == "" { // where links come in
			only = "allowed_connection_types: [STANDARD], "
		}
		fmt.Fprintf(&b, "    { user: %s, password: \"PASSWORD_%s\", %spermissions: {\n      publish: [\n", role, role, only)
		for _, subject := range publish {
			fmt.Fprintf(&b, "        %q\n", subject)
		}
		fmt.Fprintf(&b, "      ]\n      subscribe: %q\n    } }\n", subscribe)
	}
	if cluster == "" {
		b.WriteString("    # LINKS\n") // to be replaced
	}
	b.WriteString("  ]\n}\n")
	return b.String()
}

// busLink is the user of a hub by which an edge links to it.
func busLink() string {
	publish, subscribe := bus.LinkPermissions("DOMAIN")
	return fmt.Sprintf("    { user: \"DOMAIN\", password: \"PASSWORD\", allowed_connection_types: [LEAFNODE], permissions: {\n      publish: [\"%s\"]\n      subscribe: [\"%s\"]\n    } }\n", strings.Join(publish, `", "`), strings.Join(subscribe, `", "`))
}

func TestBusUsersOfManifests(t *testing.T) {
	for name, want := range map[string]string{"cluster.conf": busUsers("CLUSTER"), "hub.conf": busUsers(""), "link.conf": busLink()} {
		file := filepath.Join(kubernetesDir, "users", name)
		if *update {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%s is not what the roles need: write it anew with -update (%v)", file, err)
		}
	}
	// Each service shows the inbox that its user may read.
	for _, w := range decodeManifests(t, buildOverlay(t, "full")).pods {
		c := w.pod.Spec.Containers[0]
		i := slices.IndexFunc(c.Args, func(a string) bool { return strings.HasPrefix(a, "--bus-user=") })
		if i < 0 {
			continue
		}
		want := bus.InboxPrefix(bus.Role(strings.TrimPrefix(c.Args[i], "--bus-user=")), "") + ".$(CLUSTER_NAME)"
		if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "HEAPSTREAM_BUS_INBOX_PREFIX" && e.Value == want }) {
			t.Errorf("%s does not listen at %s", w.name, want)
		}
	}
}

// madeCredentials runs deploy/kubernetes/credentials and returns the folder that it filled.
func madeCredentials(t *testing.T, into string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("SKIP: no openssl, which makes certificates")
	}
	cmd := exec.CommandContext(t.Context(), kubernetesDir+"/credentials", args...)
	cmd.Env = append(os.Environ(), "OVERLAY="+into)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("credentials %v: %v\n%s", args, err, out)
	}
	return filepath.Join(into, "secrets")
}

// A hub and an edge with the configuration, the certificates and the users of their overlays, one server each: roles do
// what they must and are refused what they must not, and what is published at the edge is read at the hub.
func TestBusOfManifests(t *testing.T) {
	dir := t.TempDir()
	hubSecrets := madeCredentials(t, filepath.Join(dir, "hub"), "hub", "127.0.0.1", "edge-1", "edge-2")
	handed := filepath.Join(dir, "edge", "secrets", "hub") // as an operator does
	if err := os.CopyFS(handed, os.DirFS(filepath.Join(hubSecrets, "edges", "edge-1"))); err != nil {
		t.Fatal(err)
	}
	edgeSecrets := madeCredentials(t, filepath.Join(dir, "edge"), "edge", "edge-1")
	link := bustest.FreeAddr(t)
	read := func(path string) string {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	include := regexp.MustCompile(`include "\./([a-z.]+)"[^\n}]*`)
	// config puts the files of a pod's /etc/nats together, for one server on ports of its own.
	config := func(overlay, domain, secrets string) string {
		t.Helper()
		from := map[string]string{"leaf.conf": filepath.Join(kubernetesDir, "overlays", overlay, "leaf.conf"), "users.conf": filepath.Join(secrets, "bus", "users.conf"),
			"hub.conf": filepath.Join(secrets, "hub", "hub.conf")}
		conf := read(filepath.Join(kubernetesDir, "base", "nats", "nats.conf"))
		for include.MatchString(conf) {
			conf = include.ReplaceAllStringFunc(conf, func(line string) string { return read(from[include.FindStringSubmatch(line)[1]]) + "\n" })
		}
		before, rest, _ := strings.Cut(conf, "\ncluster {") // one server has no peers
		_, after, ok := strings.Cut(rest, "\n}\n")
		if !ok {
			t.Fatal("nats.conf has no cluster")
		}
		return strings.NewReplacer("$POD_NAME", overlay, "$JETSTREAM_DOMAIN", domain, "$MAX_FILE_STORE", decodeManifests(t, buildOverlay(t, overlay)).store, "/etc/nats-tls/", filepath.Join(secrets, "bus")+"/", "/etc/nats/hub-ca.crt", filepath.Join(secrets, "hub", "hub-ca.crt"),
			`http: "127.0.0.1:8222"`, "", "0.0.0.0:7422", link, "127.0.0.1:7422", link).Replace(before + "\n" + after)
	}
	hub := bustest.Configure(t, config("hub", "hub", hubSecrets))
	edge := bustest.Configure(t, config("edge", "edge-1", edgeSecrets))
	as := func(s *bustest.Configured, secrets string, role bus.Role, cluster string) *bus.Conn {
		t.Helper()
		c := bus.DefaultConfig()
		c.URLs = nil // the server's
		c.User, c.PasswordFile, c.CAFile = string(role), filepath.Join(secrets, "bus", "password-"+string(role)), filepath.Join(secrets, "bus", "ca.crt")
		c.InboxPrefix, c.ServerName = bus.InboxPrefix(role, cluster), "heapstream-nats.kube-system.svc"
		conn := s.Conn(t, c, bustest.Logger(t))
		if err := conn.WaitUp(deadlineOf(t)); err != nil {
			t.Fatalf("%s of %s: %v", role, cluster, err)
		}
		return conn
	}
	if _, err := as(edge, edgeSecrets, bus.RoleAdmin, "edge-1").Apply(deadlineOf(t), bus.Topology{Cluster: "edge-1"}); err != nil {
		t.Fatal(err)
	}
	for until := deadlineOf(t); hub.Leafs() == 0; time.Sleep(10 * time.Millisecond) {
		if until.Err() != nil {
			t.Fatal("the edge does not connect to the hub")
		}
	}
	if _, err := as(hub, hubSecrets, bus.RoleAdmin, "edge-1").Apply(deadlineOf(t), bus.Topology{Cluster: "edge-1", FromDomain: "edge-1"}); err != nil {
		t.Fatal(err)
	}
	event := bus.Message{Subject: bus.EventsSubject("edge-1", "ns"), ID: "e", Data: []byte("happened")}
	if _, err := as(edge, edgeSecrets, bus.RoleInventory, "edge-1").Publisher(bus.PublisherConfig{}).Publish(deadlineOf(t), event); err != nil {
		t.Fatal(err)
	}
	lanes, err := as(edge, edgeSecrets, bus.RoleAggregator, "edge-1").TakeLanes(deadlineOf(t), "edge-1", "me")
	if err != nil {
		t.Fatal(err)
	}
	defer lanes.Close()
	gateway := as(hub, hubSecrets, bus.RoleGateway, "edge-1")
	for _, stream := range []string{bus.EventsStream("edge-1"), bus.RollupsStream("edge-1")} {
		for _, err := range gateway.Replay(deadlineOf(t), bus.ReplayConfig{Stream: stream}) {
			if err != nil {
				t.Fatalf("%s at the hub: %v", stream, err)
			}
			break
		}
	}
	if _, err := as(edge, edgeSecrets, bus.RoleScraper, "edge-1").Publisher(bus.PublisherConfig{}).Publish(deadlineOf(t), event); err == nil {
		t.Error("a scraper of a node may publish events")
	}
	hub.Stop() // before the edge: a mirror that looks for it would outlive the server
}

// credentials keeps what is there, and says what is wrong with what it is given.
func TestCredentialsStayAndRefuse(t *testing.T) {
	dir := t.TempDir()
	secrets := madeCredentials(t, dir, "full", "prod")
	files := func() map[string]string {
		t.Helper()
		all := map[string]string{}
		if err := fs.WalkDir(os.DirFS(secrets), ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(filepath.Join(secrets, name))
			if info, err := d.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s can be read by others: %s", name, info.Mode())
			}
			all[name] = string(data)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return all
	}
	first := files()
	madeCredentials(t, dir, "full", "prod")
	if again := files(); !maps.Equal(first, again) {
		t.Error("what was made was made anew")
	}
	for _, want := range []string{"hs.samples.prod.*", "SAMPLES_prod"} {
		if users := first["bus/users.conf"]; !strings.Contains(users, want) || strings.Contains(users, "CLUSTER_") || strings.Contains(users, "PASSWORD_") {
			t.Errorf("users.conf is not of this cluster:\n%s", users)
		}
	}
	for args, want := range map[string]string{
		"full a.b":           "cluster 'a.b': 1 to 63 letters",
		"hub 10.0.0.1:7 c":   "address '10.0.0.1:7'",
		"edge nobody-has-it": "run 'credentials hub ADDRESS nobody-has-it",
		"other":              "credentials full CLUSTER",
	} {
		cmd := exec.CommandContext(t.Context(), kubernetesDir+"/credentials", strings.Fields(args)...)
		cmd.Env = append(os.Environ(), "OVERLAY="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("credentials %s: %v, %s; want %q", args, err, out, want)
		}
	}
}
