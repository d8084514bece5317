package proto

import (
	"slices"
	"strconv"
	"strings"
)

// MetricID identifies a metric of the catalogue on the wire. Ids are never reused or renumbered.
type MetricID uint16

// maxMetricID bounds the ids this version can hold; higher ones on the wire are skipped.
const maxMetricID = 255

// Field identifies a column: a metric's value, a counter's growth, or a time.
type Field uint16

// Columns that are not values of metrics. Start is when the entity's counters began (Unix ns),
// Created when a pod was created (Unix ns).
const (
	fieldDelta Field = 256
	fieldTime  Field = 512
	fieldSpan  Field = 528
	fieldStale Field = 544
	FieldStart Field = 560
	FieldBirth Field = 561 // pod: status.startTime, Unix ns

	fieldSlots Field = 576
)

// Field returns the column of the metric's values.
func (id MetricID) Field() Field { return Field(id) }

// Delta returns the column of a counter's growth over its group's span.
func (id MetricID) Delta() Field { return Field(id) + fieldDelta }

// Sampled reports whether the column holds what a source measured or told: a value or a time. All others
// (growth, spans, stale marks) are made by the aggregator.
func (f Field) Sampled() bool {
	return f < fieldDelta || f >= fieldTime && f < fieldSpan || f == FieldStart || f == FieldBirth
}

// String says what the column holds, for errors.
func (f Field) String() string {
	switch {
	case f == FieldStart:
		return "start"
	case f == FieldBirth:
		return "birth"
	case f >= fieldStale && f < FieldStart:
		return "stale marks of group " + strconv.Itoa(int(f-fieldStale))
	case f >= fieldSpan && f < fieldStale:
		return "spans of group " + strconv.Itoa(int(f-fieldSpan))
	case f >= fieldTime && f < fieldSpan:
		return "times of group " + strconv.Itoa(int(f-fieldTime))
	case f < fieldDelta && MetricByID(MetricID(f)) != nil:
		return MetricByID(MetricID(f)).Name
	case f >= fieldDelta && f < fieldTime && MetricByID(MetricID(f-fieldDelta)) != nil:
		return "growth of " + MetricByID(MetricID(f-fieldDelta)).Name
	}
	return "field " + strconv.Itoa(int(f))
}

// Group is a set of values of one entity that the kubelet samples at one moment. Every group of a
// row has its own sample time; groups of one row differ by up to 20 s within one answer.
type Group uint8

// The groups. Values are part of the wire format (at most 15).
const (
	GroupNone      Group = 0 // told by the API server or of the tick itself: always new
	GroupCPU       Group = 1
	GroupMemory    Group = 2
	GroupNetwork   Group = 3
	GroupIO        Group = 4
	GroupSwap      Group = 5
	GroupEphemeral Group = 6
	GroupProcess   Group = 7
	GroupDevice    Group = 8 // all values of one device row
)

// Time returns the column of sample times, Unix nanoseconds. GroupNone has none.
func (g Group) Time() Field { return fieldTime + Field(g) }

// Span returns the column of the time between the two samples of the last valid pair, nanoseconds.
func (g Group) Span() Field { return fieldSpan + Field(g) }

// Stale returns the column that is 1 where the group's sample did not advance at this tick: its
// delta, span and time are those of its last valid samples and stand in for new ones. So do its values, but a
// source may have changed them without a new time: who stores values by time has those of the tick at which the
// sample was new, not these.
func (g Group) Stale() Field { return fieldStale + Field(g) }

// Unit is the unit of a metric as Heapster's schema prints it.
type Unit string

// The units.
const (
	UnitCount        Unit = ""
	UnitBytes        Unit = "bytes"
	UnitMilliseconds Unit = "ms"
	UnitNanoseconds  Unit = "ns"
)

// Shape is Heapster's descriptor type.
type Shape uint8

// The shapes.
const (
	Gauge   Shape = 0
	Counter Shape = 1 // "cumulative"
)

// String returns Heapster's word for the shape.
func (s Shape) String() string {
	if s == Counter {
		return "cumulative"
	}
	return "gauge"
}

// Rule says how a metric of containers becomes one of their pod, and of pods one of namespaces.
type Rule uint8

// The rules.
const (
	RollNone  Rule = 0 // stays where it was measured
	RollPod   Rule = 1 // summed from containers to their pod
	RollNode  Rule = 2 // as RollPod, and from pods to their node
	RollUsage Rule = 3 // as RollPod, and from pods to workload, namespace and cluster (a node has its own)
	RollAll   Rule = 4 // from containers to pod, node, workload, namespace and cluster
)

// Formula says how a derived metric is computed where nothing is stored under its own id.
type Formula uint8

// The formulas (spec: processors §3, §10). All divisions by zero give no value.
const (
	FormulaNone      Formula = 0 // stored
	FormulaMilli     Formula = 1 // 1000 x delta / span, integer, truncated: millicores from nanoseconds
	FormulaPerSecond Formula = 2 // 1e9 x delta / span
	FormulaNano      Formula = 3 // 1e9 x delta / span as an integer: nanocores
	FormulaRatio     Formula = 4 // Of / By
	FormulaUptime    Formula = 5 // scraped - start, milliseconds
	FormulaStalled   Formula = 6 // delta / span: the share of time stalled
)

// Metric is one line of the catalogue.
type Metric struct {
	ID      MetricID
	Name    string
	Shape   Shape // as Heapster's descriptor says
	Float   bool  // Heapster's value_type double
	Unit    Unit
	Levels  Levels     // kinds of entities that can have it
	Group   Group      // whose sample time holds for it
	Device  DeviceKind // not 0: a labelled metric, in DeviceValues
	Rule    Rule
	Scale   int64 // stored integer / Scale = value; 0 means 1
	Formula Formula
	Of, By  MetricID // operands of Formula
	Ours    bool     // beyond Heapster: see OursAt
	oursAt  Levels   // kinds for which Heapster did not have it
	Help    string
}

var (
	measured = levels(KindNode, KindPod, KindContainer, KindSystemContainer)
	running  = levels(KindNode, KindContainer, KindSystemContainer, KindPod, KindNamespace, KindWorkload, KindCluster)
	netted   = levels(KindNode, KindPod, KindSystemContainer)
	asked    = levels(KindContainer, KindPod, KindNode, KindNamespace, KindWorkload, KindCluster)
	node     = levels(KindNode)
)

// The metrics. See the catalogue for what each one means.
const (
	Uptime               MetricID = 1
	CPUUsage             MetricID = 2
	CPUUsageRate         MetricID = 3
	CPULoad              MetricID = 4
	EphemeralUsage       MetricID = 5
	MemoryUsage          MetricID = 6
	MemoryRSS            MetricID = 7
	MemoryCache          MetricID = 8
	MemoryWorkingSet     MetricID = 9
	MemoryPageFaults     MetricID = 10
	MemoryMajorFaults    MetricID = 11
	NetworkRx            MetricID = 12
	NetworkRxErrors      MetricID = 13
	NetworkTx            MetricID = 14
	NetworkTxErrors      MetricID = 15
	MemoryPageFaultsRate MetricID = 16
	MemoryMajorRate      MetricID = 17
	NetworkRxRate        MetricID = 18
	NetworkRxErrorsRate  MetricID = 19
	NetworkTxRate        MetricID = 20
	NetworkTxErrorsRate  MetricID = 21
	CPURequest           MetricID = 22
	CPULimit             MetricID = 23
	MemoryRequest        MetricID = 24
	MemoryLimit          MetricID = 25
	EphemeralRequest     MetricID = 26
	EphemeralLimit       MetricID = 27
	RestartCount         MetricID = 28
	CPUNodeCapacity      MetricID = 29
	MemoryNodeCapacity   MetricID = 30
	EphemeralNodeCap     MetricID = 31
	CPUNodeAllocatable   MetricID = 32
	MemoryNodeAlloc      MetricID = 33
	EphemeralNodeAlloc   MetricID = 34
	CPUNodeUtilization   MetricID = 35
	MemoryNodeUtil       MetricID = 36
	EphemeralNodeUtil    MetricID = 37
	CPUNodeReservation   MetricID = 38
	MemoryNodeReserv     MetricID = 39
	EphemeralNodeReserv  MetricID = 40
	DiskRead             MetricID = 41
	DiskReadRate         MetricID = 42
	DiskWrite            MetricID = 43
	DiskWriteRate        MetricID = 44
	FilesystemUsage      MetricID = 45
	FilesystemLimit      MetricID = 46
	FilesystemAvailable  MetricID = 47
	FilesystemInodes     MetricID = 48
	FilesystemInodesFree MetricID = 49
	AcceleratorTotal     MetricID = 50
	AcceleratorUsed      MetricID = 51
	AcceleratorDuty      MetricID = 52

	FilesystemInodesUsed MetricID = 60
	InterfaceRx          MetricID = 61
	InterfaceRxErrors    MetricID = 62
	InterfaceTx          MetricID = 63
	InterfaceTxErrors    MetricID = 64
	InterfaceRxRate      MetricID = 65
	InterfaceRxErrRate   MetricID = 66
	InterfaceTxRate      MetricID = 67
	InterfaceTxErrRate   MetricID = 68
	CPUUsageNanocores    MetricID = 69
	MemoryAvailable      MetricID = 70
	SwapUsage            MetricID = 71
	SwapAvailable        MetricID = 72
	ProcessCount         MetricID = 73
	ProcessMax           MetricID = 74
	PodCount             MetricID = 75
	ContainerCount       MetricID = 76

	// Pressure stall information: 10 ids a resource from here, in the order of pressure().
	CPUPressure    MetricID = 80
	MemoryPressure MetricID = 90
	IOPressure     MetricID = 100

	CPURequestUtil    MetricID = 110
	CPULimitUtil      MetricID = 111
	MemoryRequestUtil MetricID = 112
	MemoryLimitUtil   MetricID = 113

	// Distributions over the pods of a sum: 4 ids a measure from here, in the order of distributions().
	PodCPUUsageRate      MetricID = 120
	PodMemoryWorkingSet  MetricID = 124
	PodCPURequestUtil    MetricID = 128
	PodMemoryRequestUtil MetricID = 132
)

// Offsets of the metrics of a distribution from PodCPUUsageRate and its like.
const (
	PodsMin MetricID = 0
	PodsP50 MetricID = 1
	PodsP95 MetricID = 2
	PodsMax MetricID = 3
)

// Offsets of the pressure metrics from CPUPressure, MemoryPressure and IOPressure.
const (
	PressureSomeTotal  MetricID = 0
	PressureSomeAvg10  MetricID = 1
	PressureSomeAvg60  MetricID = 2
	PressureSomeAvg300 MetricID = 3
	PressureFullTotal  MetricID = 4
	PressureFullAvg10  MetricID = 5
	PressureFullAvg60  MetricID = 6
	PressureFullAvg300 MetricID = 7
	PressureSomeRate   MetricID = 8
	PressureFullRate   MetricID = 9
)

// RateScale is the Scale of per-second rates where they are stored as sums.
const RateScale = 1000

// RatioScale is the Scale of ratios where they are stored.
const RatioScale = 1_000_000

// catalogue lists every metric, Heapster's first and in its order.
var catalogue = slices.Concat([]Metric{
	{ID: Uptime, Name: "uptime", Shape: Counter, Unit: UnitMilliseconds, Levels: measured, Formula: FormulaUptime, Help: "Time since the entity started."},
	{ID: CPUUsage, Name: "cpu/usage", Shape: Counter, Unit: UnitNanoseconds, Levels: measured, Group: GroupCPU, Help: "CPU time used on all cores since start."},
	{ID: CPULoad, Name: "cpu/load", Levels: measured, Group: GroupCPU, Help: "Load average in thousandths, as cAdvisor gives it."},
	{ID: EphemeralUsage, Name: "ephemeral_storage/usage", Unit: UnitBytes, Levels: measured, Group: GroupEphemeral, Rule: RollPod, Help: "Local ephemeral storage in use."},
	{ID: MemoryUsage, Name: "memory/usage", Unit: UnitBytes, Levels: running, Group: GroupMemory, Rule: RollUsage, Help: "Memory in use, page cache included."},
	{ID: MemoryRSS, Name: "memory/rss", Unit: UnitBytes, Levels: measured, Group: GroupMemory, Rule: RollPod, Help: "Anonymous memory and swap cache."},
	{ID: MemoryCache, Name: "memory/cache", Unit: UnitBytes, Levels: measured, Group: GroupMemory, Rule: RollPod, Help: "Page cache."},
	{ID: MemoryWorkingSet, Name: "memory/working_set", Unit: UnitBytes, Levels: running, oursAt: levels(KindNamespace, KindCluster), Group: GroupMemory, Rule: RollUsage, Help: "Memory that cannot be reclaimed easily: what the Metrics API serves."},
	{ID: MemoryPageFaults, Name: "memory/page_faults", Shape: Counter, Levels: measured, Group: GroupMemory, Help: "Page faults since start."},
	{ID: MemoryMajorFaults, Name: "memory/major_page_faults", Shape: Counter, Levels: measured, Group: GroupMemory, Help: "Page faults that read from disk, since start."},
	{ID: NetworkRx, Name: "network/rx", Shape: Counter, Unit: UnitBytes, Levels: netted, Group: GroupNetwork, Help: "Bytes received on the default interface since start."},
	{ID: NetworkRxErrors, Name: "network/rx_errors", Shape: Counter, Levels: netted, Group: GroupNetwork, Help: "Receive errors on the default interface since start."},
	{ID: NetworkTx, Name: "network/tx", Shape: Counter, Unit: UnitBytes, Levels: netted, Group: GroupNetwork, Help: "Bytes sent on the default interface since start."},
	{ID: NetworkTxErrors, Name: "network/tx_errors", Shape: Counter, Levels: netted, Group: GroupNetwork, Help: "Send errors on the default interface since start."},

	{ID: CPURequest, Name: "cpu/request", Levels: asked, Rule: RollAll, Help: "CPU requested, in millicores."},
	{ID: CPULimit, Name: "cpu/limit", Levels: asked, Rule: RollAll, Help: "CPU limit, in millicores."},
	{ID: MemoryRequest, Name: "memory/request", Unit: UnitBytes, Levels: asked, Rule: RollAll, Help: "Memory requested."},
	{ID: MemoryLimit, Name: "memory/limit", Unit: UnitBytes, Levels: asked, Rule: RollAll, Help: "Memory limit."},
	{ID: EphemeralRequest, Name: "ephemeral_storage/request", Unit: UnitBytes, Levels: levels(KindContainer, KindPod, KindNode), Rule: RollNode, Help: "Local ephemeral storage requested."},
	{ID: EphemeralLimit, Name: "ephemeral_storage/limit", Unit: UnitBytes, Levels: levels(KindContainer, KindPod, KindNode), Rule: RollNode, Help: "Local ephemeral storage limit."},
	{ID: RestartCount, Name: "restart_count", Levels: levels(KindContainer, KindPod), Rule: RollPod, Help: "Restarts as the API server counts them."},

	{ID: CPUUsageRate, Name: "cpu/usage_rate", Levels: running, Group: GroupCPU, Rule: RollUsage, Formula: FormulaMilli, Of: CPUUsage, Help: "CPU use, in millicores."},
	{ID: MemoryPageFaultsRate, Name: "memory/page_faults_rate", Float: true, Levels: measured, Group: GroupMemory, Rule: RollPod, Scale: RateScale, Formula: FormulaPerSecond, Of: MemoryPageFaults, Help: "Page faults a second."},
	{ID: MemoryMajorRate, Name: "memory/major_page_faults_rate", Float: true, Levels: measured, Group: GroupMemory, Rule: RollPod, Scale: RateScale, Formula: FormulaPerSecond, Of: MemoryMajorFaults, Help: "Major page faults a second."},
	{ID: NetworkRxRate, Name: "network/rx_rate", Float: true, Levels: netted, Group: GroupNetwork, Scale: RateScale, Formula: FormulaPerSecond, Of: NetworkRx, Help: "Bytes received a second."},
	{ID: NetworkRxErrorsRate, Name: "network/rx_errors_rate", Float: true, Levels: netted, Group: GroupNetwork, Scale: RateScale, Formula: FormulaPerSecond, Of: NetworkRxErrors, Help: "Receive errors a second."},
	{ID: NetworkTxRate, Name: "network/tx_rate", Float: true, Levels: netted, Group: GroupNetwork, Scale: RateScale, Formula: FormulaPerSecond, Of: NetworkTx, Help: "Bytes sent a second."},
	{ID: NetworkTxErrorsRate, Name: "network/tx_errors_rate", Float: true, Levels: netted, Group: GroupNetwork, Scale: RateScale, Formula: FormulaPerSecond, Of: NetworkTxErrors, Help: "Send errors a second."},

	{ID: CPUNodeCapacity, Name: "cpu/node_capacity", Float: true, Levels: node, Help: "CPU capacity, in millicores."},
	{ID: MemoryNodeCapacity, Name: "memory/node_capacity", Float: true, Levels: node, Help: "Memory capacity, in bytes."},
	{ID: EphemeralNodeCap, Name: "ephemeral_storage/node_capacity", Float: true, Levels: node, Help: "Ephemeral storage capacity, in bytes."},
	{ID: CPUNodeAllocatable, Name: "cpu/node_allocatable", Float: true, Levels: node, Help: "CPU that pods may request, in millicores."},
	{ID: MemoryNodeAlloc, Name: "memory/node_allocatable", Float: true, Levels: node, Help: "Memory that pods may request, in bytes."},
	{ID: EphemeralNodeAlloc, Name: "ephemeral_storage/node_allocatable", Float: true, Levels: node, Help: "Ephemeral storage that pods may request, in bytes."},
	{ID: CPUNodeUtilization, Name: "cpu/node_utilization", Float: true, Levels: node, Group: GroupCPU, Formula: FormulaRatio, Of: CPUUsageRate, By: CPUNodeAllocatable, Help: "CPU use as a share of what is allocatable."},
	{ID: MemoryNodeUtil, Name: "memory/node_utilization", Float: true, Levels: node, Group: GroupMemory, Formula: FormulaRatio, Of: MemoryUsage, By: MemoryNodeAlloc, Help: "Memory use as a share of what is allocatable."},
	{ID: EphemeralNodeUtil, Name: "ephemeral_storage/node_utilization", Float: true, Levels: node, Group: GroupEphemeral, Formula: FormulaRatio, Of: EphemeralUsage, By: EphemeralNodeAlloc, Help: "Ephemeral storage in use as a share of what is allocatable."},
	{ID: CPUNodeReservation, Name: "cpu/node_reservation", Float: true, Levels: node, Formula: FormulaRatio, Of: CPURequest, By: CPUNodeAllocatable, Help: "CPU requested by pods as a share of what is allocatable."},
	{ID: MemoryNodeReserv, Name: "memory/node_reservation", Float: true, Levels: node, Formula: FormulaRatio, Of: MemoryRequest, By: MemoryNodeAlloc, Help: "Memory requested by pods as a share of what is allocatable."},
	{ID: EphemeralNodeReserv, Name: "ephemeral_storage/node_reservation", Float: true, Levels: node, Formula: FormulaRatio, Of: EphemeralRequest, By: EphemeralNodeAlloc, Help: "Ephemeral storage requested by pods as a share of what is allocatable."},

	{ID: DiskRead, Name: "disk/io_read_bytes", Shape: Counter, Unit: UnitBytes, Levels: measured, Group: GroupDevice, Device: DeviceDisk, Help: "Bytes read from a block device since start."},
	{ID: DiskReadRate, Name: "disk/io_read_bytes_rate", Float: true, Levels: measured, Group: GroupDevice, Device: DeviceDisk, Scale: RateScale, Formula: FormulaPerSecond, Of: DiskRead, Help: "Bytes read from a block device a second."},
	{ID: DiskWrite, Name: "disk/io_write_bytes", Shape: Counter, Unit: UnitBytes, Levels: measured, Group: GroupDevice, Device: DeviceDisk, Help: "Bytes written to a block device since start."},
	{ID: DiskWriteRate, Name: "disk/io_write_bytes_rate", Float: true, Levels: measured, Group: GroupDevice, Device: DeviceDisk, Scale: RateScale, Formula: FormulaPerSecond, Of: DiskWrite, Help: "Bytes written to a block device a second."},
	{ID: FilesystemUsage, Name: "filesystem/usage", Unit: UnitBytes, Levels: measured, Group: GroupDevice, Device: DeviceFilesystem, Help: "Bytes in use on a file system."},
	{ID: FilesystemLimit, Name: "filesystem/limit", Unit: UnitBytes, Levels: measured, Group: GroupDevice, Device: DeviceFilesystem, Help: "Size of a file system."},
	{ID: FilesystemAvailable, Name: "filesystem/available", Unit: UnitBytes, Levels: measured, Group: GroupDevice, Device: DeviceFilesystem, Help: "Bytes free on a file system."},
	{ID: FilesystemInodes, Name: "filesystem/inodes", Unit: UnitBytes, Levels: measured, Group: GroupDevice, Device: DeviceFilesystem, Help: "Inodes of a file system (the unit is Heapster's)."},
	{ID: FilesystemInodesFree, Name: "filesystem/inodes_free", Unit: UnitBytes, Levels: measured, Group: GroupDevice, Device: DeviceFilesystem, Help: "Free inodes of a file system (the unit is Heapster's)."},
	{ID: AcceleratorTotal, Name: "accelerator/memory_total", Unit: UnitBytes, Levels: measured, Group: GroupDevice, Device: DeviceAccelerator, Help: "Memory of an accelerator."},
	{ID: AcceleratorUsed, Name: "accelerator/memory_used", Unit: UnitBytes, Levels: measured, Group: GroupDevice, Device: DeviceAccelerator, Help: "Memory in use on an accelerator."},
	{ID: AcceleratorDuty, Name: "accelerator/duty_cycle", Levels: measured, Group: GroupDevice, Device: DeviceAccelerator, Help: "Share of time the accelerator was busy, in percent."},

	{ID: FilesystemInodesUsed, Name: "filesystem/inodes_used", Levels: measured, Group: GroupDevice, Device: DeviceFilesystem, Ours: true, Help: "Inodes in use on a file system by this entity."},
	{ID: InterfaceRx, Name: "network/interface_rx", Shape: Counter, Unit: UnitBytes, Levels: netted, Group: GroupDevice, Device: DeviceInterface, Ours: true, Help: "Bytes received on one interface since start."},
	{ID: InterfaceRxErrors, Name: "network/interface_rx_errors", Shape: Counter, Levels: netted, Group: GroupDevice, Device: DeviceInterface, Ours: true, Help: "Receive errors on one interface since start."},
	{ID: InterfaceTx, Name: "network/interface_tx", Shape: Counter, Unit: UnitBytes, Levels: netted, Group: GroupDevice, Device: DeviceInterface, Ours: true, Help: "Bytes sent on one interface since start."},
	{ID: InterfaceTxErrors, Name: "network/interface_tx_errors", Shape: Counter, Levels: netted, Group: GroupDevice, Device: DeviceInterface, Ours: true, Help: "Send errors on one interface since start."},
	{ID: InterfaceRxRate, Name: "network/interface_rx_rate", Float: true, Levels: netted, Group: GroupDevice, Device: DeviceInterface, Ours: true, Scale: RateScale, Formula: FormulaPerSecond, Of: InterfaceRx, Help: "Bytes received on one interface a second."},
	{ID: InterfaceRxErrRate, Name: "network/interface_rx_errors_rate", Float: true, Levels: netted, Group: GroupDevice, Device: DeviceInterface, Ours: true, Scale: RateScale, Formula: FormulaPerSecond, Of: InterfaceRxErrors, Help: "Receive errors on one interface a second."},
	{ID: InterfaceTxRate, Name: "network/interface_tx_rate", Float: true, Levels: netted, Group: GroupDevice, Device: DeviceInterface, Ours: true, Scale: RateScale, Formula: FormulaPerSecond, Of: InterfaceTx, Help: "Bytes sent on one interface a second."},
	{ID: InterfaceTxErrRate, Name: "network/interface_tx_errors_rate", Float: true, Levels: netted, Group: GroupDevice, Device: DeviceInterface, Ours: true, Scale: RateScale, Formula: FormulaPerSecond, Of: InterfaceTxErrors, Help: "Send errors on one interface a second."},
	{ID: CPUUsageNanocores, Name: "cpu/usage_nanocores", Levels: running, Group: GroupCPU, Rule: RollUsage, Ours: true, Formula: FormulaNano, Of: CPUUsage, Help: "CPU use in nanocores, not rounded before it is summed."},
	{ID: MemoryAvailable, Name: "memory/available", Unit: UnitBytes, Levels: measured, Group: GroupMemory, Ours: true, Help: "Memory left below the limit; absent where there is none."},
	{ID: SwapUsage, Name: "memory/swap_usage", Unit: UnitBytes, Levels: running, Group: GroupSwap, Rule: RollUsage, Ours: true, Help: "Swap in use."},
	{ID: SwapAvailable, Name: "memory/swap_available", Unit: UnitBytes, Levels: measured, Group: GroupSwap, Ours: true, Help: "Swap left below the limit."},
	{ID: ProcessCount, Name: "process/count", Levels: levels(KindNode, KindPod), Group: GroupProcess, Ours: true, Help: "Processes (on a node: processes and threads as the kernel counts them)."},
	{ID: ProcessMax, Name: "process/limit", Levels: node, Group: GroupProcess, Ours: true, Help: "The most processes the node can have."},
	{ID: PodCount, Name: "pod_count", Levels: levels(KindNode, KindNamespace, KindWorkload, KindCluster), Ours: true, Help: "Pods in the sum."},
	{ID: ContainerCount, Name: "container_count", Levels: levels(KindNode, KindPod, KindNamespace, KindWorkload, KindCluster), Ours: true, Help: "Containers in the sum."},
}, pressure(), utilization(), distributions())

// pressure lists the metrics of pressure stall information (PSI). Totals are nanoseconds, averages
// percent with two decimals as the kernel prints them.
func pressure() (all []Metric) {
	for _, r := range []struct {
		first MetricID
		name  string
		group Group
	}{{CPUPressure, "cpu", GroupCPU}, {MemoryPressure, "memory", GroupMemory}, {IOPressure, "io", GroupIO}} {
		for _, s := range []struct {
			word        string
			total, rate MetricID
		}{{"some", PressureSomeTotal, PressureSomeRate}, {"full", PressureFullTotal, PressureFullRate}} {
			who := "some tasks"
			if s.word == "full" {
				who = "all tasks at once"
			}
			all = append(all, Metric{ID: r.first + s.total, Name: r.name + "/pressure_" + s.word + "_total", Shape: Counter, Unit: UnitNanoseconds,
				Levels: measured, Group: r.group, Ours: true, Help: "Time " + who + " waited for " + r.name + " since start."})
			for i, span := range []string{"10", "60", "300"} {
				all = append(all, Metric{ID: r.first + s.total + 1 + MetricID(i), Name: r.name + "/pressure_" + s.word + "_avg" + span, Float: true,
					Levels: measured, Group: r.group, Ours: true, Scale: 100, Help: "Percent of the last " + span + " s that " + who + " waited for " + r.name + "."})
			}
			all = append(all, Metric{ID: r.first + s.rate, Name: r.name + "/pressure_" + s.word + "_rate", Float: true,
				Levels: measured, Group: r.group, Ours: true, Scale: 1_000_000, Formula: FormulaStalled, Of: r.first + s.total,
				Help: "Share of time that " + who + " waited for " + r.name + ", from the totals."})
		}
	}
	return all
}

// utilization lists what is used as a share of what was requested or is allowed. Where several add up
// (containers of a pod, pods of a workload or namespace) it is the ratio of the sums: what all of them use to
// what those ask for that ask, which is what dashboards of Kubernetes show. So it is that of one of them
// only where each has a request (limit); where some have none it is higher.
func utilization() (all []Metric) {
	at := levels(KindContainer, KindPod, KindWorkload, KindNamespace)
	for _, m := range []struct {
		id     MetricID
		name   string
		group  Group
		of, by MetricID
		help   string
	}{
		{CPURequestUtil, "cpu/request_utilization", GroupCPU, CPUUsageRate, CPURequest, "CPU use as a share of the CPU requested"},
		{CPULimitUtil, "cpu/limit_utilization", GroupCPU, CPUUsageRate, CPULimit, "CPU use as a share of the CPU limit"},
		{MemoryRequestUtil, "memory/request_utilization", GroupMemory, MemoryWorkingSet, MemoryRequest, "Working set as a share of the memory requested"},
		{MemoryLimitUtil, "memory/limit_utilization", GroupMemory, MemoryWorkingSet, MemoryLimit, "Working set as a share of the memory limit"},
	} {
		all = append(all, Metric{ID: m.id, Name: m.name, Float: true, Levels: at, Group: m.group, Ours: true, Formula: FormulaRatio, Of: m.of, By: m.by,
			Help: m.help + "; of a sum: the ratio of the sums. Absent where none is set."})
	}
	return all
}

// distributions lists what the pods of a workload or namespace are like one by one. Percentiles are by
// nearest rank: the least value of a pod that at least so many percent of the pods do not exceed, so always
// the value of a pod, and of two pods the median is the lesser. Pods without a value are left out.
func distributions() (all []Metric) {
	for _, m := range []struct {
		first MetricID
		name  string
		float bool
		unit  Unit
		what  string
	}{
		{PodCPUUsageRate, "cpu/pod_usage_rate", false, UnitCount, "CPU use of a pod, in millicores"},
		{PodMemoryWorkingSet, "memory/pod_working_set", false, UnitBytes, "working set of a pod"},
		{PodCPURequestUtil, "cpu/pod_request_utilization", true, UnitCount, "CPU use of a pod as a share of the CPU it requests"},
		{PodMemoryRequestUtil, "memory/pod_request_utilization", true, UnitCount, "working set of a pod as a share of the memory it requests"},
	} {
		for _, p := range []struct {
			offset     MetricID
			name, help string
		}{{PodsMin, "min", "Least"}, {PodsP50, "p50", "Median (nearest rank)"}, {PodsP95, "p95", "95th percentile (nearest rank)"}, {PodsMax, "max", "Greatest"}} {
			d := Metric{ID: m.first + p.offset, Name: m.name + "_" + p.name, Float: m.float, Unit: m.unit, Levels: levels(KindWorkload, KindNamespace), Ours: true,
				Help: p.help + " " + m.what + ", over the pods of the sum that have one."}
			if m.float {
				d.Scale = RatioScale
			}
			all = append(all, d)
		}
	}
	return all
}

var (
	byID   = indexByID()
	byName = indexByName()
)

func indexByID() (idx [maxMetricID + 1]*Metric) {
	for i := range catalogue {
		idx[catalogue[i].ID] = &catalogue[i]
	}
	return idx
}

func indexByName() map[string]*Metric {
	idx := make(map[string]*Metric, len(catalogue))
	for i := range catalogue {
		idx[catalogue[i].Name] = &catalogue[i]
	}
	return idx
}

// OursAt reports whether Heapster had no such metric for entities of a kind: sinks and exports leave
// it out unless asked, so that what a Heapster user stores and pays for stays the same.
func (m *Metric) OursAt(k Kind) bool { return m.Ours || k == KindWorkload || m.oursAt.Has(k) }

// Metrics returns the catalogue: Heapster's metrics first, in its order. The slice must not be altered.
func Metrics() []Metric { return catalogue }

// MetricByID returns the metric with this id, or nil.
func MetricByID(id MetricID) *Metric {
	if id > maxMetricID {
		return nil
	}
	return byID[id]
}

// MetricByName returns the metric of this name (`cpu/usage_rate`), or nil.
func MetricByName(name string) *Metric { return byName[name] }

// IsExtra reports whether a metric name is one that travels outside the catalogue.
func IsExtra(name string) bool {
	return strings.HasPrefix(name, "custom/") || strings.HasSuffix(name, "/request") && byName[name] == nil
}
