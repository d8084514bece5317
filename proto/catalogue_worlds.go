package proto

// The mapping from the catalogue to the worlds of Prometheus and OpenTelemetry, a line a metric. `heapstream
// metrics` prints it, and a golden file holds it: a name that went out is not changed.
//
// Counters go out as counters. A rate, or an average, goes out only where there is no counter that says the same
// (sums over pods have none), or if it is asked for.
//
// Where OpenTelemetry's conventions have a name, it is taken, with these exceptions, whose values would not add up:
//
//   - paging.faults parts faults into minor and major ones, but kubelets count all of them and the major ones; the
//     names are those of the Collector's kubelet receiver;
//   - network.io of single interfaces is network.interface.io, so that the default interface does not count twice.

// without says why a metric goes out under no name of its own.
var without = map[MetricID]string{
	CPUUsageNanocores: "cpu/usage_rate goes out with its digits",
}

// spellings are the lines of the mapping, by metric.
var spellings = spell()

// milli turns thousandths into ones, nano nanoseconds into seconds, percent percent into ratios.
const (
	milli   = 1e3
	nano    = 1e9
	percent = 1e2
)

func spell() map[MetricID]*spelling {
	const up = InstrumentUpDown
	const counter = InstrumentCounter
	receive, transmit := []Label{{"network.io.direction", "receive"}}, []Label{{"network.io.direction", "transmit"}}
	read, write := []Label{{"disk.io.direction", "read"}}, []Label{{"disk.io.direction", "write"}}
	gpu := []Label{{"hw.type", "gpu"}}
	all := map[MetricID]*spelling{
		Uptime: {prom: "start_time_seconds", otel: "uptime", unit: "s", div: milli, start: true, help: "When the entity started, as Unix time in seconds."},

		CPUUsage:     {prom: "cpu_usage_seconds_total", otel: "cpu.time", unit: "s", as: counter, div: nano},
		CPUUsageRate: {prom: "cpu_usage_cores", otel: "cpu.usage", unit: "{cpu}", div: milli, instead: CPUUsage, exact: CPUUsageNanocores, help: "CPU use, in cores."},
		CPULoad:      {prom: "cpu_load_average", otel: "cpu.load", unit: "{thread}", div: milli, help: "Load average as cAdvisor gives it."},

		EphemeralUsage: {prom: "ephemeral_storage_usage_bytes", otel: "ephemeral_storage.usage", of: "spec", unit: "By", as: up},

		MemoryUsage:          {prom: "memory_usage_bytes", otel: "memory.usage", unit: "By", as: up},
		MemoryRSS:            {prom: "memory_rss_bytes", otel: "memory.rss", unit: "By", as: up},
		MemoryCache:          {prom: "memory_cache_bytes", otel: "memory.cache", unit: "By", as: up},
		MemoryWorkingSet:     {prom: "memory_working_set_bytes", otel: "memory.working_set", unit: "By", as: up},
		MemoryAvailable:      {prom: "memory_available_bytes", otel: "memory.available", unit: "By", as: up},
		MemoryPageFaults:     {prom: "memory_page_faults_total", otel: "memory.page_faults", unit: "{fault}", as: counter},
		MemoryMajorFaults:    {prom: "memory_major_page_faults_total", otel: "memory.major_page_faults", unit: "{fault}", as: counter},
		MemoryPageFaultsRate: {prom: "memory_page_faults_per_second", otel: "memory.page_faults_rate", unit: "{fault}/s", instead: MemoryPageFaults},
		MemoryMajorRate:      {prom: "memory_major_page_faults_per_second", otel: "memory.major_page_faults_rate", unit: "{fault}/s", instead: MemoryMajorFaults},
		SwapUsage:            {prom: "swap_usage_bytes", otel: "swap.usage", unit: "By", as: up},
		SwapAvailable:        {prom: "swap_available_bytes", otel: "swap.available", unit: "By", as: up},

		NetworkRx:           {prom: "network_receive_bytes_total", otel: "network.io", unit: "By", as: counter, attrs: receive},
		NetworkRxErrors:     {prom: "network_receive_errors_total", otel: "network.errors", unit: "{error}", as: counter, attrs: receive},
		NetworkTx:           {prom: "network_transmit_bytes_total", otel: "network.io", unit: "By", as: counter, attrs: transmit},
		NetworkTxErrors:     {prom: "network_transmit_errors_total", otel: "network.errors", unit: "{error}", as: counter, attrs: transmit},
		NetworkRxRate:       {prom: "network_receive_bytes_per_second", otel: "network.io_rate", unit: "By/s", instead: NetworkRx, attrs: receive},
		NetworkRxErrorsRate: {prom: "network_receive_errors_per_second", otel: "network.errors_rate", unit: "{error}/s", instead: NetworkRxErrors, attrs: receive},
		NetworkTxRate:       {prom: "network_transmit_bytes_per_second", otel: "network.io_rate", unit: "By/s", instead: NetworkTx, attrs: transmit},
		NetworkTxErrorsRate: {prom: "network_transmit_errors_per_second", otel: "network.errors_rate", unit: "{error}/s", instead: NetworkTxErrors, attrs: transmit},
		InterfaceRx:         {prom: "network_interface_receive_bytes_total", otel: "network.interface.io", unit: "By", as: counter, attrs: receive},
		InterfaceRxErrors:   {prom: "network_interface_receive_errors_total", otel: "network.interface.errors", unit: "{error}", as: counter, attrs: receive},
		InterfaceTx:         {prom: "network_interface_transmit_bytes_total", otel: "network.interface.io", unit: "By", as: counter, attrs: transmit},
		InterfaceTxErrors:   {prom: "network_interface_transmit_errors_total", otel: "network.interface.errors", unit: "{error}", as: counter, attrs: transmit},
		InterfaceRxRate:     {prom: "network_interface_receive_bytes_per_second", otel: "network.interface.io_rate", unit: "By/s", instead: InterfaceRx, attrs: receive},
		InterfaceRxErrRate:  {prom: "network_interface_receive_errors_per_second", otel: "network.interface.errors_rate", unit: "{error}/s", instead: InterfaceRxErrors, attrs: receive},
		InterfaceTxRate:     {prom: "network_interface_transmit_bytes_per_second", otel: "network.interface.io_rate", unit: "By/s", instead: InterfaceTx, attrs: transmit},
		InterfaceTxErrRate:  {prom: "network_interface_transmit_errors_per_second", otel: "network.interface.errors_rate", unit: "{error}/s", instead: InterfaceTxErrors, attrs: transmit},

		CPURequest:       {prom: "cpu_request_cores", otel: "cpu.request.current", of: "spec", unit: "{cpu}", as: up, div: milli, help: "CPU requested, in cores."},
		CPULimit:         {prom: "cpu_limit_cores", otel: "cpu.limit.current", of: "spec", unit: "{cpu}", as: up, div: milli, nonZero: true, help: "CPU limit, in cores; absent where there is none."},
		MemoryRequest:    {prom: "memory_request_bytes", otel: "memory.request.current", of: "spec", unit: "By", as: up},
		MemoryLimit:      {prom: "memory_limit_bytes", otel: "memory.limit.current", of: "spec", unit: "By", as: up, nonZero: true, help: "Memory limit; absent where there is none."},
		EphemeralRequest: {prom: "ephemeral_storage_request_bytes", otel: "ephemeral_storage.request", of: "spec", unit: "By", as: up},
		EphemeralLimit:   {prom: "ephemeral_storage_limit_bytes", otel: "ephemeral_storage.limit", of: "spec", unit: "By", as: up, nonZero: true, help: "Local ephemeral storage limit; absent where there is none."},
		RestartCount:     {prom: "restarts_total", otel: "restart.count", of: "spec", unit: "{restart}", as: up},

		CPURequestUtil:    {prom: "cpu_request_utilization_ratio", otel: "cpu.request.utilization", of: "spec", unit: "1"},
		CPULimitUtil:      {prom: "cpu_limit_utilization_ratio", otel: "cpu.limit.utilization", of: "spec", unit: "1"},
		MemoryRequestUtil: {prom: "memory_request_utilization_ratio", otel: "memory.request.utilization", of: "spec", unit: "1"},
		MemoryLimitUtil:   {prom: "memory_limit_utilization_ratio", otel: "memory.limit.utilization", of: "spec", unit: "1"},

		CPUNodeCapacity:     {prom: "cpu_capacity_cores", otel: "cpu.capacity", unit: "{cpu}", as: up, div: milli, help: "CPU capacity, in cores."},
		MemoryNodeCapacity:  {prom: "memory_capacity_bytes", otel: "memory.capacity", unit: "By", as: up, help: "Memory capacity."},
		EphemeralNodeCap:    {prom: "ephemeral_storage_capacity_bytes", otel: "ephemeral_storage.capacity", unit: "By", as: up, help: "Ephemeral storage capacity."},
		CPUNodeAllocatable:  {prom: "cpu_allocatable_cores", otel: "cpu.allocatable", unit: "{cpu}", as: up, div: milli, help: "CPU that pods may request, in cores."},
		MemoryNodeAlloc:     {prom: "memory_allocatable_bytes", otel: "memory.allocatable", unit: "By", as: up, help: "Memory that pods may request."},
		EphemeralNodeAlloc:  {prom: "ephemeral_storage_allocatable_bytes", otel: "ephemeral_storage.allocatable", unit: "By", as: up, help: "Ephemeral storage that pods may request."},
		CPUNodeUtilization:  {prom: "cpu_utilization_ratio", otel: "cpu.allocatable_utilization", unit: "1"},
		MemoryNodeUtil:      {prom: "memory_utilization_ratio", otel: "memory.allocatable_utilization", unit: "1"},
		EphemeralNodeUtil:   {prom: "ephemeral_storage_utilization_ratio", otel: "ephemeral_storage.allocatable_utilization", unit: "1"},
		CPUNodeReservation:  {prom: "cpu_reservation_ratio", otel: "cpu.allocatable_reservation", unit: "1"},
		MemoryNodeReserv:    {prom: "memory_reservation_ratio", otel: "memory.allocatable_reservation", unit: "1"},
		EphemeralNodeReserv: {prom: "ephemeral_storage_reservation_ratio", otel: "ephemeral_storage.allocatable_reservation", unit: "1"},

		DiskRead:      {prom: "disk_read_bytes_total", otel: "disk.io", unit: "By", as: counter, attrs: read},
		DiskWrite:     {prom: "disk_written_bytes_total", otel: "disk.io", unit: "By", as: counter, attrs: write},
		DiskReadRate:  {prom: "disk_read_bytes_per_second", otel: "disk.io_rate", unit: "By/s", instead: DiskRead, attrs: read},
		DiskWriteRate: {prom: "disk_written_bytes_per_second", otel: "disk.io_rate", unit: "By/s", instead: DiskWrite, attrs: write},

		FilesystemUsage:      {prom: "filesystem_usage_bytes", otel: "filesystem.usage", unit: "By", as: up},
		FilesystemLimit:      {prom: "filesystem_capacity_bytes", otel: "filesystem.capacity", unit: "By", as: up},
		FilesystemAvailable:  {prom: "filesystem_available_bytes", otel: "filesystem.available", unit: "By", as: up},
		FilesystemInodes:     {prom: "filesystem_inodes", otel: "filesystem.inode.count", unit: "{inode}", as: up, help: "Inodes of a file system."},
		FilesystemInodesFree: {prom: "filesystem_inodes_free", otel: "filesystem.inode.free", unit: "{inode}", as: up, help: "Free inodes of a file system."},
		FilesystemInodesUsed: {prom: "filesystem_inodes_used", otel: "filesystem.inode.used", unit: "{inode}", as: up},

		AcceleratorTotal: {prom: "accelerator_memory_limit_bytes", otel: "hw.gpu.memory.limit", of: "hw", unit: "By", as: up, attrs: gpu},
		AcceleratorUsed:  {prom: "accelerator_memory_usage_bytes", otel: "hw.gpu.memory.usage", of: "hw", unit: "By", as: up, attrs: gpu},
		AcceleratorDuty:  {prom: "accelerator_duty_cycle_ratio", otel: "hw.gpu.utilization", of: "hw", unit: "1", div: percent, attrs: gpu, help: "Share of time the accelerator was busy."},

		ProcessCount:   {prom: "processes", otel: "process.count", unit: "{process}", as: up},
		ProcessMax:     {prom: "processes_limit", otel: "process.limit", unit: "{process}", as: up},
		PodCount:       {prom: "pods", otel: "pod.count", unit: "{pod}", as: up},
		ContainerCount: {prom: "containers", otel: "container.count", unit: "{container}", as: up},

		// For its digits: never asked for by name.
		CPUUsageNanocores: {div: nano},
	}
	for _, r := range []struct {
		first MetricID
		name  string
	}{{CPUPressure, "cpu"}, {MemoryPressure, "memory"}, {IOPressure, "io"}} {
		for _, s := range []struct {
			prom, otel  string
			total, rate MetricID
		}{{"waiting", "some", PressureSomeTotal, PressureSomeRate}, {"stalled", "full", PressureFullTotal, PressureFullRate}} {
			prom, otel, total := "pressure_"+r.name+"_"+s.prom+"_", r.name+".pressure."+s.otel+".", r.first+s.total
			all[total] = &spelling{prom: prom + "seconds_total", otel: otel + "time", unit: "s", as: counter, div: nano}
			all[r.first+s.rate] = &spelling{prom: prom + "ratio", otel: otel + "ratio", unit: "1", instead: total}
			for i, span := range []string{"10", "60", "300"} {
				all[total+1+MetricID(i)] = &spelling{ //nolint:gosec // small
					prom: prom + "avg" + span + "_ratio", otel: otel + "avg" + span, unit: "1", div: percent, instead: total,
					help: "Share of the last " + span + " s of waiting for " + r.name + ", as the kernel averages it.",
				}
			}
		}
	}
	for _, d := range []struct {
		first                          MetricID
		prom, promUnit, otel, otelUnit string
		div                            float64
		what                           string
	}{
		{PodCPUUsageRate, "pod_cpu_usage_", "_cores", "pod.cpu.usage.", "{cpu}", milli, "CPU use of a pod, in cores"},
		{PodMemoryWorkingSet, "pod_memory_working_set_", "_bytes", "pod.memory.working_set.", "By", 1, "working set of a pod"},
		{PodCPURequestUtil, "pod_cpu_request_utilization_", "_ratio", "pod.cpu.request.utilization.", "1", 1, "CPU use of a pod as a share of the CPU it requests"},
		{PodMemoryRequestUtil, "pod_memory_request_utilization_", "_ratio", "pod.memory.request.utilization.", "1", 1, "working set of a pod as a share of the memory it requests"},
	} {
		for i, s := range []struct{ word, help string }{{"min", "Least "}, {"p50", "Median (nearest rank) "}, {"p95", "95th percentile (nearest rank) "}, {"max", "Greatest "}} {
			all[d.first+MetricID(i)] = &spelling{ //nolint:gosec // small
				prom: d.prom + s.word + d.promUnit, otel: d.otel + s.word, unit: d.otelUnit, div: d.div, help: s.help + d.what + ", over the pods of the sum that have one.",
			}
		}
	}
	return all
}
