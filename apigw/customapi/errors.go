package customapi

import (
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// notFound is a 404 in our words: the library's would call a metric a resource.
func notFound(format string, args ...any) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: fmt.Sprintf(format, args...),
	}}
}

// bad is a 400 about a metric.
func bad(metric, format string, args ...any) error {
	return apierrors.NewBadRequest(fmt.Sprintf("metric %q: ", metric) + fmt.Sprintf(format, args...))
}
