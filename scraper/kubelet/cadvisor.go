package kubelet

import "github.com/heapstream/heapstream/proto"

// family says where the values of one family of an exposition go.
type family struct {
	of    what
	field proto.Field // of the cgroup or the device
	group proto.Group // whose time the line tells; of devices GroupDevice
	scale int         // stored integer = value x 10^scale
}

// what a family is about.
type what uint8

const (
	ofNobody what = iota
	ofCgroup
	ofCPU         // one line a cgroup (cpu="total"), or one a processor
	ofLimit       // of memory
	ofInterface   // by label interface
	ofFilesystem  // by label device
	ofDisk        // by labels device, or major and minor
	ofDiskKind    // the same; label operation says whether Read or Write
	ofSectors     // the same, in sectors of 512 bytes: where no family tells bytes
	ofAccelerator // by labels make, model, acc_id
	ofFailures    // page faults, by labels failure_type and scope
	ofMachine     // labels alone: whose answer this is
	ofError       // 1: the kubelet could not measure
)

// seconds as nanoseconds.
const nanoseconds = 9

// cadvisorFamily is what is read of /metrics/cadvisor (cadvisor: metrics/prometheus.go and the
// kubelet's own labels). Not there, and so absent: free space of file systems (their size less their
// use would count what is reserved), ephemeral storage, volumes.
func cadvisorFamily(name []byte) family {
	cgroup := func(id proto.MetricID, g proto.Group, scale int) family {
		return family{of: ofCgroup, field: id.Field(), group: g, scale: scale}
	}
	device := func(of what, id proto.MetricID) family {
		return family{of: of, field: id.Field(), group: proto.GroupDevice}
	}
	switch string(name) {
	case "container_cpu_usage_seconds_total":
		return family{of: ofCPU, field: proto.CPUUsage.Field(), group: proto.GroupCPU, scale: nanoseconds}
	case "container_cpu_load_average_10s":
		return cgroup(proto.CPULoad, proto.GroupCPU, 0)
	case "container_memory_usage_bytes":
		return cgroup(proto.MemoryUsage, proto.GroupMemory, 0)
	case "container_memory_rss":
		return cgroup(proto.MemoryRSS, proto.GroupMemory, 0)
	case "container_memory_cache":
		return cgroup(proto.MemoryCache, proto.GroupMemory, 0)
	case "container_memory_working_set_bytes":
		return cgroup(proto.MemoryWorkingSet, proto.GroupMemory, 0)
	case "container_memory_failures_total":
		return family{of: ofFailures, group: proto.GroupMemory}
	case "container_memory_swap":
		return cgroup(proto.SwapUsage, proto.GroupSwap, 0)
	case "container_spec_memory_limit_bytes":
		return family{of: ofLimit}
	case "container_start_time_seconds":
		return family{of: ofCgroup, field: proto.FieldStart, scale: nanoseconds}
	case "container_processes":
		return cgroup(proto.ProcessCount, proto.GroupProcess, 0)
	case "container_pressure_cpu_waiting_seconds_total":
		return cgroup(proto.CPUPressure+proto.PressureSomeTotal, proto.GroupCPU, nanoseconds)
	case "container_pressure_cpu_stalled_seconds_total":
		return cgroup(proto.CPUPressure+proto.PressureFullTotal, proto.GroupCPU, nanoseconds)
	case "container_pressure_memory_waiting_seconds_total":
		return cgroup(proto.MemoryPressure+proto.PressureSomeTotal, proto.GroupMemory, nanoseconds)
	case "container_pressure_memory_stalled_seconds_total":
		return cgroup(proto.MemoryPressure+proto.PressureFullTotal, proto.GroupMemory, nanoseconds)
	case "container_pressure_io_waiting_seconds_total":
		return cgroup(proto.IOPressure+proto.PressureSomeTotal, proto.GroupIO, nanoseconds)
	case "container_pressure_io_stalled_seconds_total":
		return cgroup(proto.IOPressure+proto.PressureFullTotal, proto.GroupIO, nanoseconds)
	case "container_network_receive_bytes_total":
		return device(ofInterface, proto.InterfaceRx)
	case "container_network_receive_errors_total":
		return device(ofInterface, proto.InterfaceRxErrors)
	case "container_network_transmit_bytes_total":
		return device(ofInterface, proto.InterfaceTx)
	case "container_network_transmit_errors_total":
		return device(ofInterface, proto.InterfaceTxErrors)
	case "container_fs_usage_bytes":
		return device(ofFilesystem, proto.FilesystemUsage)
	case "container_fs_limit_bytes":
		return device(ofFilesystem, proto.FilesystemLimit)
	case "container_fs_inodes_total":
		return device(ofFilesystem, proto.FilesystemInodes)
	case "container_fs_inodes_free":
		return device(ofFilesystem, proto.FilesystemInodesFree)
	case "container_fs_reads_bytes_total":
		return device(ofDisk, proto.DiskRead)
	case "container_fs_writes_bytes_total":
		return device(ofDisk, proto.DiskWrite)
	case "container_blkio_device_usage_total":
		return family{of: ofDiskKind, group: proto.GroupDevice}
	case "container_fs_sector_reads_total":
		return device(ofSectors, proto.DiskRead)
	case "container_fs_sector_writes_total":
		return device(ofSectors, proto.DiskWrite)
	case "container_accelerator_memory_total_bytes":
		return device(ofAccelerator, proto.AcceleratorTotal)
	case "container_accelerator_memory_used_bytes":
		return device(ofAccelerator, proto.AcceleratorUsed)
	case "container_accelerator_duty_cycle":
		return device(ofAccelerator, proto.AcceleratorDuty)
	case "machine_memory_bytes":
		return family{of: ofMachine}
	case "container_scrape_error":
		return family{of: ofError}
	}
	return family{}
}

// resourceFamily is what is read of /metrics/resource (kubelet: metrics/collectors/resource_metrics.go).
func resourceFamily(name []byte) family {
	value := func(f proto.Field, g proto.Group, scale int) family {
		return family{of: ofCgroup, field: f, group: g, scale: scale}
	}
	switch string(name) {
	case "container_cpu_usage_seconds_total", "pod_cpu_usage_seconds_total", "node_cpu_usage_seconds_total":
		return value(proto.CPUUsage.Field(), proto.GroupCPU, nanoseconds)
	case "container_memory_working_set_bytes", "pod_memory_working_set_bytes", "node_memory_working_set_bytes":
		return value(proto.MemoryWorkingSet.Field(), proto.GroupMemory, 0)
	case "container_swap_usage_bytes", "pod_swap_usage_bytes", "node_swap_usage_bytes":
		return value(proto.SwapUsage.Field(), proto.GroupSwap, 0)
	case "container_start_time_seconds":
		return value(proto.FieldStart, proto.GroupNone, nanoseconds)
	case "resource_scrape_error", "scrape_error":
		return family{of: ofError}
	}
	return family{}
}
